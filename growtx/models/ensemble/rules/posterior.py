"""`posterior`: a mixture whose weights are each member's probability given the text so far.

Branch-Train-Merge, Li et al., arXiv:2208.03306, section 2.2: the domain of a text is a hidden variable, and Bayes'
rule gives its distribution from how well every member predicted the text up to here. Two additions, both learnable
by `fit_rule`: older evidence fades (decay), so that a text may change its domain, and evidence is divided by a
temperature, because neighbouring tokens do not testify independently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from growtx.models.ensemble.rules.base import ProbabilityMixture, TextSoFar


class PosteriorRule(ProbabilityMixture):
    """Member weights proportional to prior * likelihood of the text so far.

    Args:
        decay: factor per position by which older evidence fades; 1 is Bayes' rule as it stands.
        temperature: divides the evidence.
    """

    name = "posterior"

    def __init__(self, num_members: int, decay: float = 0.95, temperature: float = 2.0) -> None:
        super().__init__(num_members)
        self.log_prior = nn.Parameter(torch.zeros(num_members))
        self.decay_logit = nn.Parameter(torch.tensor(decay).clamp(1e-6, 1 - 1e-6).logit())
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    @staticmethod
    def num_history_layers(num_members: int) -> int:
        return num_members + 1  # every member's final states, and all likelihoods

    def options(self) -> dict[str, Any]:
        return {"decay": self.decay_logit.sigmoid().item(), "temperature": self.log_temperature.exp().item()}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        evidence_BTN = text.log_likelihoods_BTN
        unused = text.rows_BTD.shape[-1] - self.num_members  # rows of the cache have the model's width
        rows_BSN = text.history.append(self.num_members, F.pad(evidence_BTN, (0, unused)))[..., : self.num_members]
        total_BTN = text.history.decayed_sum(rows_BSN, self.decay_logit.float().sigmoid())
        return (self.log_prior.float() + total_BTN / self.log_temperature.float().exp()).softmax(-1)
