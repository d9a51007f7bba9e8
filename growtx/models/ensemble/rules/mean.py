"""`mean`: the average of the members' logits.

The merge of the growth paper (arXiv:2507.07129): specialists on one frozen substrate, logits averaged. As logits
and log-probabilities differ by a constant per position, it is the normalised geometric mean of the members'
distributions, Hinton's product of experts (2002) with exponents 1/N.
"""

from __future__ import annotations

import torch

from growtx.models.ensemble.rules.base import CombinationRule, TextSoFar


class MeanRule(CombinationRule):
    """Every member has weight 1/N."""

    name = "mean"
    pools_linearly = True

    def weights(self, text: TextSoFar) -> torch.Tensor:
        return torch.full((self.num_members,), 1.0 / self.num_members, device=text.rows_BTD.device)
