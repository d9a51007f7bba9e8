from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from growtx.exceptions import ConfigError
from growtx.models import GrowtxForCausalLM
from growtx.models.counting import num_params
from tests.models import generation
from tests.models.conftest import small_config

Make = Callable[..., GrowtxForCausalLM]


def test_greedy_is_the_same_with_every_cache_and_with_left_padding(make_model: Make, tokens_BT: torch.Tensor) -> None:
    generation.check_greedy_agrees_everywhere(make_model(), tokens_BT)


def test_sampling_and_beams_do_not_depend_on_the_cache(make_model: Make, tokens_BT: torch.Tensor) -> None:
    generation.check_sampling_and_beams_do_not_depend_on_the_cache(make_model(), tokens_BT)


def test_tokens_after_a_cache_stand_where_they_would_without_one(make_model: Make, tokens_BT: torch.Tensor) -> None:
    model = make_model()
    whole = model(tokens_BT, use_cache=False).logits
    cache = model(tokens_BT[:, :5], use_cache=True).past_key_values
    for part in (tokens_BT[:, 5:9], tokens_BT[:, 9:]):
        output = model(part, past_key_values=cache, use_cache=True)
        start = int(cache.get_seq_length()) - part.shape[1]
        torch.testing.assert_close(output.logits, whole[:, start : start + part.shape[1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_continuous_batching_generates_what_single_requests_do(
    make_model: Make, tokens_BT: torch.Tensor, attention: str
) -> None:
    model = make_model()
    model.set_attn_implementation(attention)
    generation.check_continuous_batching(model, tokens_BT)


def test_saved_model_loads_through_the_auto_classes(make_model: Make, tokens_BT: torch.Tensor, tmp_path: Path) -> None:
    model = make_model(substrate_width=8, substrate_expansion="tile")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is GrowtxForCausalLM
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == model.config.to_diff_dict()
    assert torch.equal(loaded(tokens_BT).logits, model(tokens_BT).logits)


@pytest.mark.parametrize("first_block", [1, 2, 3])
def test_starting_from_prefix_states_gives_the_same_loss_and_gradients(
    make_model: Make, tokens_BT: torch.Tensor, first_block: int
) -> None:
    model = make_model()
    full = model(input_ids=tokens_BT, labels=tokens_BT)
    full.loss.backward()
    expected = model.lm_head.weight.grad.clone()
    model.zero_grad()
    states_BTD = model.forward_prefix(tokens_BT, first_block)
    assert not states_BTD.requires_grad
    resumed = model(prefix_hidden_states=states_BTD, first_block=first_block, labels=tokens_BT)
    resumed.loss.backward()
    assert torch.equal(resumed.loss, full.loss)
    torch.testing.assert_close(model.lm_head.weight.grad, expected)
    assert all(p.grad is None for block in model.model.layers[:first_block] for p in block.parameters())


def test_prefix_states_respect_left_padding(make_model: Make, tokens_BT: torch.Tensor) -> None:
    model = make_model()
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[:, :4] = 0
    states_BTD = model.forward_prefix(tokens_BT, 2, attention_mask=mask_BT)
    resumed = model(prefix_hidden_states=states_BTD, first_block=2, attention_mask=mask_BT).logits
    assert torch.equal(resumed, model(tokens_BT, attention_mask=mask_BT, use_cache=False).logits)


def test_loss_is_the_mean_over_predicted_labels(make_model: Make, tokens_BT: torch.Tensor) -> None:
    model = make_model()
    labels_BT = tokens_BT.clone()
    labels_BT[:, 5:8] = -100
    output = model(input_ids=tokens_BT, labels=labels_BT)
    logits_BTV = model(tokens_BT).logits
    expected = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(output.logits, logits_BTV), "in evaluation mode, labels give both"
    assert model(input_ids=tokens_BT, labels=labels_BT, skip_logits=True).logits is None
    assert model.train()(input_ids=tokens_BT, labels=labels_BT).logits is None
    assert output.token_nll.shape == (3, 11)
    assert output.token_nll[:, 4:7].abs().sum() == 0
    torch.testing.assert_close(output.token_nll.sum() / (labels_BT[:, 1:] >= 0).sum(), expected)


def test_loss_is_divided_by_the_given_number_of_items(make_model: Make, tokens_BT: torch.Tensor) -> None:
    model = make_model()
    mean = model(input_ids=tokens_BT, labels=tokens_BT).loss
    halved = model(input_ids=tokens_BT, labels=tokens_BT, num_items_in_batch=2 * 33).loss
    torch.testing.assert_close(halved, mean / 2)


def test_activation_checkpointing_changes_no_gradient(make_model: Make, tokens_BT: torch.Tensor) -> None:
    model = make_model().train()
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    for parameter, gradient in zip((p for p in model.parameters() if p.requires_grad), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_eager_and_sdpa_agree_and_eager_returns_weights(make_model: Make, tokens_BT: torch.Tensor) -> None:
    model = make_model()
    expected = model(tokens_BT).logits
    model.set_attn_implementation("eager")
    output = model(tokens_BT, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(output.logits, expected)
    assert [weights.shape for weights in output.attentions] == [(3, 4, 12, 12)] * 3
    assert len(output.hidden_states) == 4


def test_logits_to_keep_selects_positions(make_model: Make, tokens_BT: torch.Tensor) -> None:
    model = make_model()
    logits_BTV = model(tokens_BT).logits
    torch.testing.assert_close(model(tokens_BT, logits_to_keep=2).logits, logits_BTV[:, -2:])
    kept = torch.tensor([0, 5])
    torch.testing.assert_close(model(tokens_BT, logits_to_keep=kept).logits, logits_BTV[:, kept])


def test_vocabulary_cannot_be_resized(make_model: Make) -> None:
    with pytest.raises(ConfigError, match="cannot be resized"):
        make_model().resize_token_embeddings(200)


def test_lora_trains_and_merges_exactly(make_model: Make, tokens_BT: torch.Tensor) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    adapted = model(input_ids=tokens_BT).logits
    merged = model.merge_and_unload()
    assert type(merged) is GrowtxForCausalLM
    assert (merged(tokens_BT).logits - adapted).abs().max() < 1e-4


# --- the substrate added again in every block ---


def test_reinjection_adds_nothing_until_its_scalars_have_trained(make_model: Make, tokens_BT: torch.Tensor) -> None:
    plain, model = make_model(), make_model(substrate_reinjection=True)
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for block in model.model.layers:
            block.reinjection.zero_()
    assert torch.equal(model(tokens_BT).logits, plain(tokens_BT).logits)
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    assert all(float(block.reinjection.grad.abs()) > 0 for block in model.model.layers)
    with torch.no_grad():
        model.model.layers[1].reinjection.fill_(0.5)
    rows_BTD = model.model.embed_tokens(tokens_BT)
    states_BTD = plain.forward_prefix(tokens_BT, 1) + 0.5 * rows_BTD
    expected = plain(prefix_hidden_states=states_BTD, first_block=1).logits
    torch.testing.assert_close(model(tokens_BT).logits, expected)


def test_a_new_models_reinjection_starts_at_zero() -> None:
    model = GrowtxForCausalLM(small_config(substrate_reinjection=True))
    assert all(block.reinjection.item() == 0.0 for block in model.model.layers)


def test_reinjection_generates_the_same_with_every_cache(make_model: Make, tokens_BT: torch.Tensor) -> None:
    generation.check_greedy_agrees_everywhere(make_model(substrate_reinjection=True), tokens_BT)
    generation.check_continuous_batching(make_model(substrate_reinjection=True), tokens_BT)


def test_cached_prefix_states_need_the_tokens_beside_them_for_reinjection(
    make_model: Make, tokens_BT: torch.Tensor
) -> None:
    model = make_model(substrate_reinjection=True)
    full = model(input_ids=tokens_BT, labels=tokens_BT).loss
    batch = {"prefix_hidden_states": model.forward_prefix(tokens_BT, 2), "first_block": 2, "labels": tokens_BT}
    assert torch.equal(model(**batch, input_ids=tokens_BT).loss, full)
    with pytest.raises(ValueError, match="substrate_reinjection needs input_ids"):
        model(**batch)


def test_reinjection_is_counted_and_checkpointed(make_model: Make, tokens_BT: torch.Tensor) -> None:
    model = make_model(substrate_reinjection=True)
    assert num_params(model.config).total == sum(parameter.numel() for parameter in model.parameters())
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
        gradients.append([block.reinjection.grad.clone() for block in model.model.layers])
    torch.testing.assert_close(gradients[0], gradients[1])
