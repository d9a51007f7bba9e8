"""`adapter`: a trainable map of the members' concatenated logits.

The growth paper (arXiv:2507.07129) merges specialists by their mean or by "an adapter over the concatenated
logits". A dense one has N V^2 parameters; this one adds a low-rank correction to the mean, (N + 1) V r, in the way
of LoRA (arXiv:2106.09685), and starts as the mean exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from growtx.models.ensemble.rules.base import CombinationRule, TextSoFar, pool_logits


class AdapterRule(CombinationRule):
    """Mean of logits plus a rank-r map of all of them.

    Args:
        vocab_size: V of the ensemble.
        rank: r; the adapter has (N + 1) V r parameters.
    """

    name = "adapter"
    fit_learning_rate = 1e-3  # a step moves every logit by about rank * |logit| times this: scalars' 0.05 diverges

    def __init__(self, num_members: int, vocab_size: int, rank: int = 16) -> None:
        super().__init__(num_members)
        self.down = nn.Parameter(torch.randn(num_members, rank, vocab_size) / (num_members * vocab_size) ** 0.5)
        self.up = nn.Parameter(torch.zeros(vocab_size, rank))

    def options(self) -> dict[str, Any]:
        return {"vocab_size": self.up.shape[0], "rank": self.up.shape[1]}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        """Of the mean inside; what the map adds has no weight per member."""
        return torch.full((self.num_members,), 1.0 / self.num_members, device=text.rows_BTD.device)

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        narrow = torch.stack([member @ down.t() for member, down in zip(logits, self.down, strict=True)]).sum(0)
        return pool_logits(logits, weights) + narrow @ self.up.t()
