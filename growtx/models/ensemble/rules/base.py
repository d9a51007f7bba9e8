"""What every combination rule is: weights of the members at every position, and a way to pool with them.

Shapes: N members, B batch, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from growtx.models.ensemble.history import History
from growtx.models.loss import IGNORE_INDEX, chunked_cross_entropy


@dataclass
class TextSoFar:
    """What a rule may look at when it weighs the members: the tokens of this call and the rows kept of older ones.

    `rows_BTD` are the tokens' expanded substrate rows; `states` the members' final states, each [B, T, D].
    """

    input_ids_BT: torch.Tensor
    rows_BTD: torch.Tensor
    states: Sequence[torch.Tensor]
    heads: Sequence[nn.Module]
    history: History

    @cached_property
    @torch.no_grad()
    def log_likelihoods_BTN(self) -> torch.Tensor:
        """log p_n(x_t | x_<t) of the tokens of this call; 0 for a token that no position precedes."""
        columns = []
        for layer, (states_BTD, head) in enumerate(zip(self.states, self.heads, strict=True)):
            before_BTD, has_before_BT = self.history.rows_before(self.history.append(layer, states_BTD))
            targets_BT = self.input_ids_BT.masked_fill(~has_before_BT, IGNORE_INDEX)
            _, nll_BT = chunked_cross_entropy(before_BTD.to(states_BTD.dtype), head, targets_BT)
            assert nll_BT is not None
            columns.append(-nll_BT)
        return torch.stack(columns, dim=-1)


class CombinationRule(nn.Module):
    """Base of the rules. A rule's tensors are saved with the ensemble, its options in the ensemble's config."""

    name: ClassVar[str]
    pools_linearly: ClassVar[bool] = False  # fixed weights on logits: can be folded into one wide head
    fit_learning_rate: ClassVar[float] = 0.05  # Adam's, for a handful of scalars

    def __init__(self, num_members: int) -> None:
        super().__init__()
        self.num_members = num_members

    @staticmethod
    def num_history_layers(num_members: int) -> int:
        """Cache layers that the rule appends to; 0 for rules that do not look at the text."""
        return 0

    def options(self) -> dict[str, Any]:
        """Arguments, beside the number of members, that build an equal rule."""
        return {}

    def spec(self) -> dict[str, Any]:
        """JSON-able name and options."""
        return {"name": self.name, **self.options()}

    def weights(self, text: TextSoFar) -> torch.Tensor:
        """Weights in fp32: [N], the same everywhere, or [B, T, N]."""
        raise NotImplementedError

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """Pool the members' logits, each [..., V], with weights [..., N]."""
        return pool_logits(logits, weights)


def pool_logits(logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of logits: a product of experts, as log-probabilities differ from logits by a constant."""
    weights = weights.to(logits[0].dtype)
    total = logits[0] * weights[..., 0, None]
    for index, member in enumerate(logits[1:], start=1):
        total = total + member * weights[..., index, None]
    return total


class ProbabilityMixture(CombinationRule):
    """Base of the rules that average probabilities: mixtures of experts, with constant weights or not.

    A token's probability then depends on the members' probabilities of that token alone.
    """

    def combine(self, logits: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """Log of the weighted sum of probabilities."""
        log_weights = _log(weights)
        total = logits[0].float().log_softmax(-1) + log_weights[..., 0, None]
        for index, member in enumerate(logits[1:], start=1):
            total = torch.logaddexp(total, member.float().log_softmax(-1) + log_weights[..., index, None])
        return total

    def token_nll(self, log_likelihoods: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Nats [...] of tokens from the members' log-likelihoods [..., N] of them."""
        return -(log_likelihoods + _log(weights)).logsumexp(-1)


def _log(weights: torch.Tensor) -> torch.Tensor:
    """Weights may underflow to 0, where the logarithm has no usable gradient."""
    return weights.clamp(min=1e-30).log()
