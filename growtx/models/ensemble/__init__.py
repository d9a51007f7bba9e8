"""Ensembles of specialists on one substrate, as transformers models."""

from __future__ import annotations

from growtx.models.ensemble.configuration import GrowtxEnsembleConfig
from growtx.models.ensemble.flat import GrowtxEnsembleForCausalLM, GrowtxEnsembleOutput
from growtx.models.ensemble.fused import GrowtxFusedEnsembleConfig, GrowtxFusedEnsembleForCausalLM, to_fused
from growtx.models.ensemble.lazy import LateBranches
from growtx.models.ensemble.members import from_members, member_of
from growtx.models.ensemble.rules import RULES, CombinationRule, build_rule

__all__ = [
    "RULES",
    "CombinationRule",
    "GrowtxEnsembleConfig",
    "GrowtxEnsembleForCausalLM",
    "GrowtxEnsembleOutput",
    "GrowtxFusedEnsembleConfig",
    "GrowtxFusedEnsembleForCausalLM",
    "LateBranches",
    "build_rule",
    "from_members",
    "member_of",
    "to_fused",
]
