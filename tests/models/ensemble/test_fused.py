from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from growtx.exceptions import ConfigError
from growtx.models import (
    GrowtxEnsembleForCausalLM,
    GrowtxForCausalLM,
    GrowtxFusedEnsembleForCausalLM,
    from_members,
    to_fused,
)
from tests.models import generation

Members = dict[str, GrowtxForCausalLM]


@pytest.fixture
def flat(equal_members: Members) -> GrowtxEnsembleForCausalLM:
    ensemble = from_members(equal_members, rule="weighted-mean")
    with torch.no_grad():
        ensemble.rule.member_weights.copy_(torch.tensor([0.2, 0.7, 0.4]))
    return ensemble


def test_wide_form_has_the_logits_of_the_flat_one(flat: GrowtxEnsembleForCausalLM, tokens_BT: torch.Tensor) -> None:
    fused = to_fused(flat)
    assert (fused(tokens_BT).logits - flat(tokens_BT).logits).abs().max() < 1e-4
    losses = [model(input_ids=tokens_BT, labels=tokens_BT).loss for model in (fused, flat)]
    torch.testing.assert_close(*losses)
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[:, :4] = 0
    ours, theirs = (model(tokens_BT, attention_mask=mask_BT).logits[:, 4:] for model in (fused, flat))
    assert (ours - theirs).abs().max() < 1e-4


def test_wide_form_without_head_bias(tokens_BT: torch.Tensor) -> None:
    from tests.models.ensemble.conftest import make_members

    flat = from_members(make_members(num_hidden_layers=2, lm_head_bias=False))
    assert (to_fused(flat)(tokens_BT).logits - flat(tokens_BT).logits).abs().max() < 1e-4


def test_greedy_sampling_beams_and_continuous_batching_agree(
    flat: GrowtxEnsembleForCausalLM, tokens_BT: torch.Tensor
) -> None:
    fused = to_fused(flat)
    generation.check_greedy_agrees_everywhere(fused, tokens_BT)
    generation.check_sampling_and_beams_do_not_depend_on_the_cache(fused, tokens_BT)
    generation.check_continuous_batching(fused, tokens_BT)


def test_saved_wide_form_loads_through_the_auto_classes(
    flat: GrowtxEnsembleForCausalLM, tokens_BT: torch.Tensor, tmp_path: Path
) -> None:
    fused = to_fused(flat)
    fused.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is GrowtxFusedEnsembleForCausalLM
    assert torch.equal(loaded(tokens_BT).logits, fused(tokens_BT).logits)


def test_unequal_depths_and_other_rules_are_refused(members: Members, flat: GrowtxEnsembleForCausalLM) -> None:
    with pytest.raises(ConfigError, match="3, 4, 3 blocks"):
        to_fused(from_members(members))
    flat.set_rule("mixture")
    with pytest.raises(ConfigError, match="use one of mean, weighted-mean"):
        to_fused(flat)
