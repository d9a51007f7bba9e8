"""`mixture`: the weighted average of the members' probabilities.

The linear opinion pool (Stone 1961) and the mixture of experts with constant gates (Jacobs et al. 1991). Where
members disagree it keeps both opinions, while a mean of logits keeps only what all of them find possible.
"""

from __future__ import annotations

import torch
from torch import nn

from growtx.models.ensemble.rules.base import ProbabilityMixture, TextSoFar


class MixtureRule(ProbabilityMixture):
    """Constant member probabilities; uniform before they are fitted."""

    name = "mixture"

    def __init__(self, num_members: int) -> None:
        super().__init__(num_members)
        self.log_prior = nn.Parameter(torch.zeros(num_members))

    def weights(self, text: TextSoFar) -> torch.Tensor:
        return self.log_prior.float().softmax(-1)
