"""The gate with members that run late: the numbers of all members running, for fewer of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache

from growtx.exceptions import ConfigError
from growtx.models import GrowtxEnsembleForCausalLM, GrowtxForCausalLM, from_members
from growtx.models.ensemble import LateBranches

Make = Callable[[str], GrowtxEnsembleForCausalLM]


def late(ensemble: GrowtxEnsembleForCausalLM) -> LateBranches:
    return LateBranches(ensemble.config)


@pytest.fixture
def gate(make_ensemble: Make) -> GrowtxEnsembleForCausalLM:
    return make_ensemble("gate")


@pytest.fixture
def text_1T() -> torch.Tensor:
    return torch.randint(3, 97, (1, 30), generator=torch.Generator().manual_seed(11))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("chunks", [[30], [1] * 30, [7, 1, 1, 12, 1, 8]])
def test_late_members_give_the_logits_of_all_members(
    gate: GrowtxEnsembleForCausalLM, text_1T: torch.Tensor, chunks: list[int], attention: str
) -> None:
    gate.set_attn_implementation(attention)
    expected = gate(text_1T, use_cache=False)
    for keep in (0, 1):
        cache, start = late(gate), 0
        for length in chunks:
            end = start + length
            output = gate(text_1T[:, start:end], past_key_values=cache, logits_to_keep=keep)
            first = end - 1 if keep else start
            probabilities = expected.logits[:, first:end].softmax(-1)
            torch.testing.assert_close(output.logits.softmax(-1), probabilities, atol=1e-5, rtol=1e-4)
            start = end
    assert not torch.equal(expected.member_weights.amax(-1), torch.ones(1, 30)), "the gate must have something to do"


@torch.no_grad()
def test_only_members_that_are_asked_run(gate: GrowtxEnsembleForCausalLM, text_1T: torch.Tensor) -> None:
    gate.rule.threshold.fill_(1.0)  # no doubt is larger
    gate.rule.router.log_prior.copy_(torch.tensor([0.0, 9.0, 0.0]))
    gate.rule.router.evidence.weight.zero_()
    cache = late(gate)
    calls = [0] * len(gate.layers)
    for index, layer in enumerate(gate.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    for token in text_1T[0]:
        gate(token[None, None], past_key_values=cache, logits_to_keep=1)
    blocks = gate.config.blocks_of_members[1]
    assert calls == [30 if index in blocks else 0 for index in range(len(calls))]
    assert (cache.num_read, cache.num_opened, cache.num_tokens) == ([0, 30, 0], 0, 30)
    gate.rule.threshold.fill_(0.0)
    gate(text_1T[:, :1], past_key_values=cache, logits_to_keep=1)
    assert (cache.num_read, cache.num_opened) == ([31, 31, 31], 1), "the others catch up at once"
    assert calls == [31 if index in blocks else 1 for index in range(len(calls))], "in one chunk"


@torch.no_grad()
def test_a_single_text_runs_late_by_itself(gate: GrowtxEnsembleForCausalLM, text_1T: torch.Tensor) -> None:
    assert isinstance(gate(text_1T, logits_to_keep=1).past_key_values, LateBranches)
    assert isinstance(gate(text_1T).past_key_values, DynamicCache)
    assert not isinstance(gate(text_1T.expand(2, -1), logits_to_keep=1).past_key_values, LateBranches)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = gate.generate(text_1T[:, :6], **options)
    assert torch.equal(gate.generate(text_1T[:, :6], past_key_values=late(gate), **options), expected)


@torch.no_grad()
def test_forgotten_tokens_are_forgotten_by_every_member(gate: GrowtxEnsembleForCausalLM, text_1T: torch.Tensor) -> None:
    cache = late(gate)
    gate(text_1T[:, :20], past_key_values=cache, logits_to_keep=1)
    cache.crop(-8)
    again = gate(text_1T[:, 12:], past_key_values=cache).logits
    expected = gate(text_1T, use_cache=False).logits[:, 12:]
    torch.testing.assert_close(again.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=1e-4)


def test_what_late_members_cannot_do_is_refused(
    gate: GrowtxEnsembleForCausalLM, text_1T: torch.Tensor, members: dict[str, GrowtxForCausalLM]
) -> None:
    mask_1T = torch.ones_like(text_1T)
    mask_1T[0, 0] = 0
    for sentence, call in {
        "holds one text, not 2": {"input_ids": text_1T.expand(2, -1)},
        "is for the rule gate, not mixture": {"input_ids": text_1T, "rule": "mixture"},
        "takes no padding": {"input_ids": text_1T, "attention_mask": mask_1T},
        "is for generating, not for a loss": {"input_ids": text_1T, "labels": text_1T},
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            gate(past_key_values=late(gate), **call)
    members["de"].model.layers[0].load_state_dict(members["de"].model.layers[1].state_dict())
    with pytest.raises(ConfigError, match="cannot lag behind each other"):
        late(from_members(members))
    for rule in ("gate", "trunk-state"):
        with pytest.raises(ConfigError, match=f"rule {rule} reads the state after the blocks that all members share"):
            from_members(members, rule=rule)
