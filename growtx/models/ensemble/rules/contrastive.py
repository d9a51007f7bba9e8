"""`contrastive`: what the experts say beyond what an amateur says too.

Contrastive decoding, Li et al., arXiv:2210.15097, in the logit form of DExperts, Liu et al., arXiv:2105.03023:
(1 + s) times the experts' mean minus s times the amateur. The amateur may be a specialist, or a shallower stage of
the same lineage, whose blocks the ensemble then shares (the contrast of layers of DoLa, arXiv:2309.03883).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from growtx.exceptions import ConfigError
from growtx.models.ensemble.rules.base import CombinationRule, TextSoFar, pool_logits


class ContrastiveRule(CombinationRule):
    """Experts' mean minus the amateur.

    Args:
        amateur: index of the member that is subtracted.
        strength: s above; learnable, 0 is the experts' mean.
        cutoff: tokens less probable for the experts than this fraction of their best are excluded. For decoding
            only: an excluded token costs infinitely many bits.
    """

    name = "contrastive"

    def __init__(self, num_members: int, amateur: int = 0, strength: float = 0.5, cutoff: float = 0.0) -> None:
        super().__init__(num_members)
        if num_members < 2 or not 0 <= amateur < num_members:
            raise ConfigError(
                f"the rule contrastive got amateur {amateur} among {num_members} members",
                "Name one of at least two members by its index, counted from 0",
            )
        self.amateur = amateur
        self.cutoff = cutoff
        self.strength = nn.Parameter(torch.tensor(strength))

    def options(self) -> dict[str, Any]:
        return {"amateur": self.amateur, "strength": self.strength.item(), "cutoff": self.cutoff}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        is_amateur_N = torch.arange(self.num_members, device=self.strength.device) == self.amateur
        strength = self.strength.float()
        return torch.where(is_amateur_N, -strength, (1 + strength) / (self.num_members - 1))

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        pooled = pool_logits(logits, weights)
        if self.cutoff == 0.0:
            return pooled
        experts = [member for index, member in enumerate(logits) if index != self.amateur]
        expert_scores = torch.stack(list(experts)).float().mean(0)
        floor = expert_scores.amax(-1, keepdim=True) + torch.tensor(self.cutoff).log()
        return pooled.masked_fill(expert_scores < floor, float("-inf"))
