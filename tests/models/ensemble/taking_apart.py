"""The members of an ensemble as models of their own again: what tests compare the ensemble with."""

from __future__ import annotations

from growtx.models import GrowtxEnsembleForCausalLM, GrowtxForCausalLM
from growtx.models.ensemble import member_of

__all__ = ["member_of", "members_of"]


def members_of(ensemble: GrowtxEnsembleForCausalLM) -> dict[str, GrowtxForCausalLM]:
    """The specialists of an ensemble, sharing its parameters."""
    return {name: member_of(ensemble, name) for name in ensemble.config.member_names or []}
