"""Three specialists on one substrate; two share their lowest block, one is deeper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from growtx.models import GrowtxEnsembleForCausalLM, GrowtxForCausalLM, from_members
from growtx.models.ensemble import RULES, CombinationRule
from tests.models.conftest import VOCAB_SIZE, small_model

Members = dict[str, GrowtxForCausalLM]


def make_members(**changes: Any) -> Members:
    members = {
        "ru": small_model(1, **changes),
        "zh": small_model(2, **{"num_hidden_layers": 4, **changes}),
        "de": small_model(3, **changes),
    }
    for model in members.values():
        model.model.embed_tokens.load_state_dict(members["ru"].model.embed_tokens.state_dict())
    members["zh"].model.layers[0].load_state_dict(members["ru"].model.layers[0].state_dict())
    return members


def share_a_trunk(members: Members) -> Members:
    """Let all members stand on one block."""
    for model in members.values():
        model.model.layers[0].load_state_dict(members["ru"].model.layers[0].state_dict())
    return members


@pytest.fixture
def members() -> Members:
    return make_members()


@pytest.fixture
def equal_members() -> Members:
    return make_members(num_hidden_layers=3)


@pytest.fixture
def make_ensemble(members: Members) -> Callable[[str], GrowtxEnsembleForCausalLM]:
    """Build with a rule whose parameters are not at their defaults, so that they matter; on a trunk if it needs one."""

    def make(rule: str) -> GrowtxEnsembleForCausalLM:
        ensemble = from_members(share_a_trunk(members) if RULES[rule].reads_trunk else members, rule=rule)
        disturb(ensemble, ensemble.rule)
        return ensemble

    return make


def disturb(ensemble: GrowtxEnsembleForCausalLM, rule: CombinationRule) -> None:
    generator = torch.Generator().manual_seed(5)
    if rule.name == "cluster":
        texts = [torch.randint(3, VOCAB_SIZE, (4, 20), generator=generator) for _ in ensemble.norms]
        rule.place_centres(ensemble.embed_tokens, texts)
    with torch.no_grad():
        if rule.name == "gate":
            rule.threshold.fill_(0.3)  # about half of the positions are left to one member
        for parameter in rule.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
