"""Substrates that are not drawn: the bits of token ids, and random vectors to start learning from.

Legend: V tokens, D hidden size, E stored width.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from growtx.exceptions import SubstrateError


def binary_width(vocab_size: int, hidden_size: int) -> int:
    """E of a binary substrate: the smallest divisor of D that holds ceil(log2 V) bits.

    Raises:
        SubstrateError: if the bits do not fit into D.
    """
    num_bits = max(1, math.ceil(math.log2(vocab_size)))
    for width in range(num_bits, hidden_size + 1):
        if hidden_size % width == 0:
            return width
    problem = f"The {num_bits} bits of {vocab_size} token ids do not fit into hidden_size={hidden_size}"
    raise SubstrateError(problem, f"Use hidden_size={num_bits} or more")


def binary_codes(vocab_size: int, hidden_size: int) -> NDArray[np.float32]:
    """The bits of each token id, most significant first, 0 or 1 as published: float32 [V, E].

    Columns beyond the bits that V needs come first and are 0, so that the rank is at most ceil(log2 V).
    """
    shifts = np.arange(binary_width(vocab_size, hidden_size) - 1, -1, -1)
    return ((np.arange(vocab_size)[:, None] >> shifts) & 1).astype(np.float32)


def learned_start(vocab_size: int, hidden_size: int, seed: int) -> NDArray[np.float32]:
    """Gaussian vectors of length about 1, the scale on which the drawn substrates are: float32 [V, D]."""
    values = np.random.RandomState(seed).standard_normal((vocab_size, hidden_size))
    return (values / math.sqrt(hidden_size)).astype(np.float32)
