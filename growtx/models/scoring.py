"""How many bits a model needs for text: negative log-likelihood per UTF-8 byte, comparable across tokenizers.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import nn

from growtx.models.loss import IGNORE_INDEX


@dataclass(frozen=True)
class TextScore:
    """Summed nats, predicted tokens and the UTF-8 bytes that those tokens stand for."""

    nats: float
    num_tokens: float
    num_bytes: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / log(2) / self.num_bytes

    def __add__(self, other: TextScore) -> TextScore:
        return TextScore(self.nats + other.nats, self.num_tokens + other.num_tokens, self.num_bytes + other.num_bytes)


def labels_of(tokens_BT: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """The windows themselves as labels, padding ignored; the model shifts them."""
    if pad_token_id is None:
        return tokens_BT
    return tokens_BT.masked_fill(tokens_BT == pad_token_id, IGNORE_INDEX)


@torch.no_grad()
def score_windows(
    model: nn.Module, tokens_BT: torch.Tensor, labels_BT: torch.Tensor, bytes_V: torch.Tensor
) -> torch.Tensor:
    """Score every position but the first of each window.

    Args:
        model: a GrowtxForCausalLM or a wrapper of one.
        bytes_V: UTF-8 bytes of each token.

    Returns:
        [B, 3] float64: nats, predicted tokens and their bytes of each window.
    """
    nll_BT = model(input_ids=tokens_BT, labels=labels_BT, use_cache=False).token_nll
    counted_BT = labels_BT[:, 1:] >= 0
    token_bytes_BT = bytes_V[labels_BT[:, 1:].clamp_min(0)] * counted_BT
    columns = (nll_BT.double().sum(1), counted_BT.double().sum(1), token_bytes_BT.double().sum(1))
    return torch.stack(columns, dim=1)
