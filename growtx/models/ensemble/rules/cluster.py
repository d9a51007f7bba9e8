"""`cluster`: a mixture whose weights say how near the text so far is to each member's training text.

c-BTM, Gururangan et al., arXiv:2303.14177: members belong to clusters of documents, and a context is routed by the
distance between its tf-idf vector and the clusters' centres. Here the vector is made of the frozen substrate's
rows, which costs nothing and needs no embedding model; the centres come from text of each member's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from growtx.models.ensemble.rules.base import ProbabilityMixture, TextSoFar


class ClusterRule(ProbabilityMixture):
    """Weights proportional to exp(-distance^2 / temperature) between the context and the members' centres.

    Args:
        hidden_size, vocab_size: of the ensemble.
        decay: factor per position by which older tokens fade from the context.
        temperature: of the distances between vectors of length one.

    `place_centres` must be called before the rule means anything; until then all members weigh the same.
    """

    name = "cluster"

    def __init__(
        self, num_members: int, hidden_size: int, vocab_size: int, decay: float = 0.98, temperature: float = 0.1
    ) -> None:
        super().__init__(num_members)
        self.decay_logit = nn.Parameter(torch.tensor(decay).clamp(1e-6, 1 - 1e-6).logit())
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.register_buffer("centres_ND", torch.zeros(num_members, hidden_size))
        self.register_buffer("rarity_V", torch.ones(vocab_size))
        self.centres_ND: torch.Tensor
        self.rarity_V: torch.Tensor

    @staticmethod
    def num_history_layers(num_members: int) -> int:
        return 1  # the tokens' weighted rows

    def options(self) -> dict[str, Any]:
        return {
            "hidden_size": self.centres_ND.shape[1],
            "vocab_size": len(self.rarity_V),
            "decay": self.decay_logit.sigmoid().item(),
            "temperature": self.log_temperature.exp().item(),
        }

    @torch.no_grad()
    def place_centres(self, substrate: nn.Module, texts: Sequence[torch.Tensor]) -> None:
        """Set centres and inverse document frequencies.

        Args:
            substrate: maps ids to rows of width D (`ensemble.embed_tokens`).
            texts: one tensor of windows [num_windows, T] per member, of its own training or held-out text.
        """
        windows = [window for member in texts for window in member]
        seen_in_V = torch.zeros_like(self.rarity_V)
        for window in windows:
            seen_in_V[window.unique()] += 1
        self.rarity_V.copy_(((1 + len(windows)) / (1 + seen_in_V)).log() + 1)
        for member, windows_WT in enumerate(texts):
            rows_WTD = substrate(windows_WT) * self.rarity_V[windows_WT][..., None]
            contexts_WD = F.normalize(rows_WTD.sum(1), dim=-1)
            self.centres_ND[member] = F.normalize(contexts_WD.sum(0), dim=-1)

    def weights(self, text: TextSoFar) -> torch.Tensor:
        rarity_BT1 = self.rarity_V[text.input_ids_BT][..., None]
        rows_BSD = text.history.append(0, text.rows_BTD.float() * rarity_BT1)
        context_BTD = F.normalize(text.history.decayed_sum(rows_BSD, self.decay_logit.float().sigmoid()), dim=-1)
        distances_BTN = (context_BTD[..., None, :] - self.centres_ND.float()).square().sum(-1)
        return (-distances_BTN / self.log_temperature.float().exp()).softmax(-1)
