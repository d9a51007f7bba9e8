"""Attention for continuous batching on CPU: every request sees its own keys, in a way that does not depend on others.

Continuous batching packs the new tokens of all requests into one row. Stock SDPA then computes every query against
every request's keys and masks most of it away; this implementation cuts the row at the requests' borders.

It also makes a token's result independent of how it was computed: alone or in a batch, in a prompt or after it.
Matrix products on CPU round differently for one to three rows than for more, and where their inner length is split
depends on that length. So queries are padded to at least `MIN_ROWS` rows and keys to lengths on a coarse grid.
(Measured with MKL on AVX2: bit-identical. Elsewhere the differences are those of fp32 rounding.)

Shapes: H heads, K head width, T new tokens of all requests, S keys of all requests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from growtx.compat.transformers import PagedCall, register_attention

VARLEN_ATTENTION = "growtx_flash_varlen_cpu"  # "flash" stands for "without a mask" (`register_attention`)
MIN_ROWS = 4


def register_varlen_attention() -> str:
    """Make the implementation known to transformers; returns its name."""
    register_attention(VARLEN_ATTENTION, varlen_attention)
    return VARLEN_ATTENTION


def varlen_attention(
    module: nn.Module,
    query_1HTK: torch.Tensor,
    key_1HTK: torch.Tensor,
    value_1HTK: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention per request; without a paged cache, over the whole row as the end of one text.

    Returns:
        Mixed values [1, T, H, K], and no weights.
    """
    paged = PagedCall.of(kwargs)
    if paged is None:
        assert attention_mask is None, "padded batches are for sdpa; this implementation serves packed requests"
        borders_q, borders_k = [0, query_1HTK.shape[2]], [0, key_1HTK.shape[2]]
    else:
        key_1HTK, value_1HTK = paged.update(key_1HTK, value_1HTK, module.layer_idx)  # type: ignore[arg-type]
        borders_q, borders_k = paged.ends_of_queries.tolist(), paged.ends_of_keys.tolist()
    mixed_1HTK = torch.empty_like(query_1HTK)
    for start, end, start_k, end_k in zip(borders_q, borders_q[1:], borders_k, borders_k[1:], strict=False):
        if end > start:
            keys, values = (_keys_on_grid(states, start_k, end_k) for states in (key_1HTK, value_1HTK))
            mixed_1HTK[:, :, start:end] = _attend_alone(
                query_1HTK[:, :, start:end], keys, values, end_k - start_k, scaling
            )
    return mixed_1HTK.transpose(1, 2).contiguous(), None


def _attend_alone(
    query_1HTK: torch.Tensor, key_1HSK: torch.Tensor, value_1HSK: torch.Tensor, num_keys: int, scaling: float
) -> torch.Tensor:
    """One request: its T new tokens are the last of `num_keys`; keys beyond those are other requests' or padding."""
    num_queries = query_1HTK.shape[2]
    padded_1HTK = F.pad(query_1HTK, (0, 0, 0, max(0, MIN_ROWS - num_queries)))
    mask_TS = _causal_mask(num_queries, num_keys, key_1HSK.shape[2])
    mixed = F.scaled_dot_product_attention(padded_1HTK, key_1HSK, value_1HSK, attn_mask=mask_TS, scale=scaling)
    return mixed[:, :, :num_queries]


@lru_cache(maxsize=128)  # the layers of one step ask for the same masks
def _causal_mask(num_queries: int, num_keys: int, length: int) -> torch.Tensor:
    rows_T = torch.arange(max(num_queries, MIN_ROWS)).clamp(max=num_queries - 1)
    return torch.arange(length) <= num_keys - num_queries + rows_T[:, None]


def _keys_on_grid(states_1HSK: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Rows from `start` on, at least to `end`, as many as the grid says: what follows is masked, so a view will do."""
    wanted = start + padded_length(end - start)
    missing = wanted - states_1HSK.shape[2]
    rows = states_1HSK[:, :, start:wanted]
    return F.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows


def padded_length(num_keys: int) -> int:
    """Multiples of 32 up to 128, of 512 beyond: lengths whose products are summed in the same order."""
    step = 32 if num_keys <= 128 else 512
    return -(-num_keys // step) * step
