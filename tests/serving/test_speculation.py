"""Drafts of a shallow depth change nothing but the time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from growtx.exceptions import ConfigError
from growtx.sampling import Sampling, continue_text
from growtx.serving.speculation import Drafted, Speculation
from tests.serving.conftest import make_model
from tests.serving.test_depths import ensembles, stages

WAYS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8},
    "nucleus": {"top_p": 0.8, "top_k": 40},
    "greedy and penalised": {"temperature": 0.0, "frequency_penalty": 1.5},
    "penalised": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "min_tokens": 6},
}
PROMPTS = [tuple(random.Random(i).randrange(4, 300) for _ in range(1 + 7 * i)) for i in (0, 1, 4, 9)]


@pytest.fixture(params=[False, True], ids=["plain", "substrate reinjected"])
def models(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> dict[int, Any]:
    """The deep one is close to the shallow ones, so that some drafts are right and others are not."""
    found = stages(tokenizer, substrate_reinjection=request.param)
    for depth in (1, 2):
        found[depth].lm_head.load_state_dict(found[4].lm_head.state_dict())
        found[depth].model.norm.load_state_dict(found[4].model.norm.state_dict())
        found[depth].lm_head.weight.data += 0.02 * torch.randn_like(found[depth].lm_head.weight)
    for block in found[4].model.layers[2:]:
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            linear.weight.data *= 0.5
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("depth", "num_drafts"), [(1, 1), (2, 4), (2, 9)])
def test_tokens_are_those_of_plain_decoding(models: Any, way: str, depth: int, num_drafts: int) -> None:
    expected = [
        continue_text(models[4], prompt, 20, Sampling(seed=i, **WAYS[way]), eos_ids=[5], num_hidden=1)
        for i, prompt in enumerate(PROMPTS)
    ]
    speculation, found = Speculation(models, depth, num_drafts), list[Drafted]()
    for i, prompt in enumerate(PROMPTS):
        found.append(speculation.continue_text(prompt, 20, Sampling(seed=i, **WAYS[way]), eos_ids=[5], num_hidden=1))
    assert [drafted.tokens for drafted in found] == expected
    num_right, num_made = sum(sum(drafted.was_drafted) for drafted in found), sum(one.num_drafts for one in found)
    assert 0 < num_right < num_made
    for drafted in found:  # a pass gives a token of its own, unless a right draft was the last one
        from_passes = drafted.num_passes - drafted.was_drafted[-1]
        assert len(drafted.tokens) == 1 + from_passes + sum(drafted.was_drafted)


def test_blocks_run_once_for_every_position(models: Any) -> None:
    """The lower ones also for wrong drafts; no other position is ever computed again."""
    speculation, rows = Speculation(models, 2, 3), [0, 0, 0, 0]
    for index, block in enumerate(speculation._backbone.blocks):
        block.register_forward_hook(lambda _, inputs, __, index=index: _count(rows, index, inputs[0].shape[1]))
    drafted = speculation.continue_text(PROMPTS[3], 30, Sampling(seed=3))
    assert rows[0] == rows[1] == rows[2] == rows[3] == len(PROMPTS[3]) + drafted.num_passes + drafted.num_drafts


def _count(rows: list[int], index: int, number: int) -> None:
    rows[index] += number


def test_a_perfect_draft_is_always_right_and_no_draft_is_plain_decoding(tokenizer: PreTrainedTokenizerFast) -> None:
    models = stages(tokenizer)
    models[2].lm_head.load_state_dict(models[4].lm_head.state_dict())
    models[2].model.norm.load_state_dict(models[4].model.norm.state_dict())
    for block in models[4].model.layers[2:]:
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.bias)
    for way in WAYS.values():
        drafted = Speculation(models, 2, 4).continue_text(PROMPTS[2], 26, Sampling(seed=1, **way))
        assert (drafted.acceptance, drafted.num_passes, drafted.tokens_per_pass) == (1.0, 5, 5.0)
    drafted = Speculation(models, 2, 4).continue_text(PROMPTS[2], 26, Sampling(seed=1))
    plain = Speculation(models, 2, 0).continue_text(PROMPTS[2], 26, Sampling(seed=1))
    assert plain.tokens == drafted.tokens and (plain.num_drafts, plain.num_passes, plain.acceptance) == (0, 25, 0.0)


def test_what_cannot_speculate_says_why(tokenizer: PreTrainedTokenizerFast) -> None:
    models: dict[int, Any] = dict(stages(tokenizer))
    for depth, num_drafts in ((4, 3), (3, 3), (2, -1)):
        with pytest.raises(ConfigError, match=r"lower depth \(1, 2\)"):
            Speculation(models, depth, num_drafts)
    changed = make_model(tokenizer, seed=9, num_hidden_layers=4)
    with pytest.raises(ConfigError, match="LoRA"):
        Speculation({**models, 4: changed}, 2, 3)
    with pytest.raises(ConfigError, match="not an ensemble"):
        Speculation(dict(ensembles(tokenizer, "mean", num_trunk_blocks=0)), 2, 3)
