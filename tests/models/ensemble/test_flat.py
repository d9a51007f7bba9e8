from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from growtx.exceptions import ConfigError
from growtx.models import GrowtxEnsembleForCausalLM, GrowtxForCausalLM, from_members
from growtx.models.ensemble import RULES
from tests.models import generation

Members = dict[str, GrowtxForCausalLM]
Make = Callable[[str], GrowtxEnsembleForCausalLM]

TEXT_RULES = ["posterior", "cluster", "trunk-state", "gate"]


def test_mean_of_logits_is_the_mean_of_the_members(members: Members, tokens_BT: torch.Tensor) -> None:
    expected = torch.stack([model(tokens_BT).logits for model in members.values()]).mean(0)
    torch.testing.assert_close(from_members(members)(tokens_BT).logits, expected)


def test_shared_lower_blocks_are_stored_and_computed_once(members: Members, tokens_BT: torch.Tensor) -> None:
    ensemble = from_members(members)
    assert ensemble.config.member_blocks == [[0, 1, 2], [0, 3, 4, 5], [6, 7, 8]]
    calls: list[int] = []
    for index, block in enumerate(ensemble.layers):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    ensemble(tokens_BT)
    assert sorted(calls) == list(range(9))


def test_one_member_alone_is_bit_identical_and_others_are_not_computed(
    members: Members, tokens_BT: torch.Tensor
) -> None:
    ensemble = from_members(members)
    ensemble.norms[0].register_forward_hook(lambda *_: pytest.fail("a member of weight 0 was computed"))
    alone = ensemble(tokens_BT, member_weights=[0, 1, 0], use_cache=False)
    assert torch.equal(alone.logits, members["zh"](tokens_BT).logits)
    loss = ensemble(input_ids=tokens_BT, labels=tokens_BT, member_weights=[0, 0, 1]).loss
    torch.testing.assert_close(loss, members["de"](input_ids=tokens_BT, labels=tokens_BT).loss)


@pytest.mark.parametrize("rule", ["mean", "adapter", *TEXT_RULES])
def test_greedy_is_the_same_with_every_cache_and_with_left_padding(
    make_ensemble: Make, tokens_BT: torch.Tensor, rule: str
) -> None:
    generation.check_greedy_agrees_everywhere(make_ensemble(rule), tokens_BT)


@pytest.mark.parametrize("rule", ["mean", "posterior"])
def test_sampling_and_beams_do_not_depend_on_the_cache(make_ensemble: Make, tokens_BT: torch.Tensor, rule: str) -> None:
    generation.check_sampling_and_beams_do_not_depend_on_the_cache(make_ensemble(rule), tokens_BT)


@pytest.mark.parametrize(
    ("rule", "attention"), [("mean", "eager"), ("posterior", "sdpa"), ("posterior", "eager"), ("cluster", "sdpa")]
)
def test_continuous_batching_generates_what_single_requests_do(
    make_ensemble: Make, tokens_BT: torch.Tensor, rule: str, attention: str
) -> None:
    ensemble = make_ensemble(rule)
    ensemble.set_attn_implementation(attention)
    generation.check_continuous_batching(ensemble, tokens_BT)


@pytest.mark.parametrize("rule", TEXT_RULES)
def test_weights_from_the_text_are_the_same_padded_cached_and_cropped(
    make_ensemble: Make, tokens_BT: torch.Tensor, rule: str
) -> None:
    ensemble = make_ensemble(rule)
    expected = ensemble(tokens_BT, use_cache=False).member_weights
    assert expected.std(dim=1).max() > 0.05
    torch.testing.assert_close(expected.sum(-1), torch.ones(3, 12))

    padded_BT = torch.cat([torch.zeros(3, 5, dtype=torch.long), tokens_BT], dim=1)
    mask_BT = (torch.arange(17) >= 5).long().expand(3, -1)
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    padded = ensemble(padded_BT, attention_mask=mask_BT, position_ids=positions_BT).member_weights
    torch.testing.assert_close(padded[:, 5:], expected)

    first = ensemble(tokens_BT[:, :7], use_cache=True)
    torch.testing.assert_close(first.member_weights, expected[:, :7])
    first.past_key_values.crop(-3)
    rest = ensemble(tokens_BT[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.member_weights, expected[:, 4:])


def test_weights_given_to_one_call_leave_no_gap_in_the_history(make_ensemble: Make, tokens_BT: torch.Tensor) -> None:
    ensemble = make_ensemble("posterior")
    first = ensemble(tokens_BT[:, :5], member_weights=[1.0, 0.0, 0.0], use_cache=True)
    rest = ensemble(tokens_BT[:, 5:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.member_weights, ensemble(tokens_BT).member_weights[:, 5:])


def test_loss_agrees_with_the_logits_for_every_rule(make_ensemble: Make, tokens_BT: torch.Tensor) -> None:
    labels_BT = tokens_BT.clone()
    labels_BT[0, :4] = -100
    for rule in RULES:
        ensemble = make_ensemble(rule)
        logits_BTV = ensemble(tokens_BT).logits
        output = ensemble(input_ids=tokens_BT, labels=labels_BT)
        expected = torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)
        assert output.token_nll.shape == (3, 11)


def test_a_call_can_use_another_rule_and_other_weights(members: Members, tokens_BT: torch.Tensor) -> None:
    mean, mixture = (from_members(members, rule=rule) for rule in ("mean", "mixture"))
    torch.testing.assert_close(mean(tokens_BT, rule="mixture").logits, mixture(tokens_BT).logits)
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]])
    output = mean(tokens_BT, member_weights=rows)
    assert torch.equal(output.member_weights, rows[:, None].expand(-1, 12, -1))
    alone = mean(tokens_BT, member_weights=[0.0, 1.0, 0.0])
    torch.testing.assert_close(output.logits[1], alone.logits[1])


@pytest.mark.parametrize("weights", [[1.0, 0.0], [float("nan"), 0.0, 1.0], [-1.0, 1.0, 1.0], [[1.0, 0.0, 0.0]]])
def test_weights_that_do_not_fit_are_refused(make_ensemble: Make, tokens_BT: torch.Tensor, weights: object) -> None:
    with pytest.raises(ConfigError, match="do not fit 3 members"):
        make_ensemble("mean")(tokens_BT, member_weights=weights)


def test_a_cache_made_for_another_rule_is_refused_in_a_sentence(make_ensemble: Make, tokens_BT: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"set_rule\(...\)"):
        make_ensemble("mean").generate(tokens_BT, rule="posterior", max_new_tokens=2)


def test_continuous_batching_refuses_rules_on_the_text_in_half_precision(make_ensemble: Make) -> None:
    with pytest.raises(ConfigError, match="Load the ensemble in float32"):
        make_ensemble("posterior").bfloat16().generate_batch([[3, 4]], generation_config=GenerationConfig())


def test_long_prompts_in_pieces_keep_the_weights_right(make_ensemble: Make) -> None:
    """Continuous batching reads prompts in chunks; the likelihood of a chunk's first token needs the chunk before."""
    ensemble = make_ensemble("posterior")
    prompts = torch.randint(3, 97, (2, 40))
    results = ensemble.generate_batch(
        prompts.tolist(),
        generation_config=GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(page_size=32, num_blocks=16, max_batch_tokens=24),
    )
    expected = [generation.greedy_without_cache(ensemble, prompt, 6) for prompt in prompts]
    assert [output.generated_tokens for output in results.values()] == expected


@pytest.mark.parametrize("rule", ["posterior", "gate"])
def test_saved_ensemble_loads_through_the_auto_classes(
    make_ensemble: Make, tokens_BT: torch.Tensor, tmp_path: Path, rule: str
) -> None:
    ensemble = make_ensemble(rule)
    ensemble.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is GrowtxEnsembleForCausalLM
    assert loaded.config.member_names == ["ru", "zh", "de"]
    assert torch.equal(loaded(tokens_BT).logits, ensemble(tokens_BT).logits)


def test_lora_attaches_to_one_member_and_merges(make_ensemble: Make, tokens_BT: torch.Tensor) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=r"layers\.[678]\..*proj", task_type="CAUSAL_LM")
    model = get_peft_model(make_ensemble("mean"), lora)
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained and all(".layers.6." in name or ".layers.7." in name or ".layers.8." in name for name in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted = model(input_ids=tokens_BT).logits
    assert (model.merge_and_unload()(tokens_BT).logits - adapted).abs().max() < 1e-4


def test_heads_train_alone(make_ensemble: Make, tokens_BT: torch.Tensor) -> None:
    ensemble = make_ensemble("mean").train().requires_grad_(False)
    ensemble.lm_heads.requires_grad_(True)
    ensemble(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    assert all(head.weight.grad is not None for head in ensemble.lm_heads)
    assert all(parameter.grad is None for parameter in ensemble.layers.parameters())
