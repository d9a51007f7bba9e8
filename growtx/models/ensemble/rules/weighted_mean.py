"""`weighted-mean`: a sum of logits with weights fitted on held-out text.

The logarithmic opinion pool of Heskes, "Selecting weighting factors in logarithmic opinion pools" (NIPS 1997).
The loss is convex in the weights. They need not sum to one: a larger sum sharpens the pool as a temperature below
one would, which the mean of unlike specialists needs, because averaging flattens.
"""

from __future__ import annotations

import torch
from torch import nn

from growtx.models.ensemble.rules.base import CombinationRule, TextSoFar


class WeightedMeanRule(CombinationRule):
    """One free weight per member; 1/N before it is fitted."""

    name = "weighted-mean"
    pools_linearly = True

    def __init__(self, num_members: int) -> None:
        super().__init__(num_members)
        self.member_weights = nn.Parameter(torch.full((num_members,), 1.0 / num_members))

    def weights(self, text: TextSoFar) -> torch.Tensor:
        return self.member_weights.float()
