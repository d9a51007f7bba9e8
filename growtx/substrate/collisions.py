"""Tokens that look alike, and the code that tells them apart.

Legend: V tokens, P pixels, E components.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from growtx.substrate.rendering import Pixels

CODE_LENGTH = 0.25  # of the code that is added to a unit vector: look-alikes keep a cosine of about 0.94


def groups(packed: Pixels) -> NDArray[np.int64]:
    """The first token that looks like each token [V]; tokens that look like no other name themselves."""
    rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first[inverse]


def separate(weight: NDArray[np.float32], packed: Pixels) -> NDArray[np.float32]:
    """Give every token of a look-alike group but the first a direction of its own.

    Tokens that look like no other, and the first of each group, keep their vector exactly.
    """
    first = groups(packed)
    result = weight.copy()
    for token in np.flatnonzero(first != np.arange(len(first))):
        row = weight[token].astype(np.float64) + CODE_LENGTH * _code(int(token), weight.shape[1])
        result[token] = row / np.sqrt((row * row).sum())
    return result


def _code(token: int, width: int) -> NDArray[np.float64]:
    """A unit vector of random signs that depends on the token id alone [E]."""
    signs = np.random.RandomState(token).randint(0, 2, size=width) * 2 - 1
    return np.asarray(signs / np.sqrt(width))
