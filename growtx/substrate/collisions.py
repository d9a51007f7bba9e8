"""Tokens that share a vector, and the code that tells them apart.

Legend: V tokens, E components.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtx.substrate.eigen import ordered_sum

CODE_LENGTH = 0.25  # of what is added to a unit vector; its cosine with the original stays at 0.97


def first_alike(rows: NDArray[Any]) -> NDArray[np.int64]:
    """The first token with the same row as each token [V], be it vector or picture; itself where none is earlier."""
    seen: dict[bytes, int] = {}
    digests = (hashlib.blake2b(row.data, digest_size=16).digest() for row in np.ascontiguousarray(rows))
    return np.array([seen.setdefault(digest, token) for token, digest in enumerate(digests)], dtype=np.int64)


def separate(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give every token that shares a vector with an earlier one a vector of its own; all others keep theirs.

    What is added has the length `CODE_LENGTH` and random signs that depend on the token id alone, so that a
    look-alike stays near what it looks like, but differs from it, and from others, in every component.
    """
    result = weight.copy()
    repeated = np.flatnonzero(first_alike(weight) != np.arange(len(weight)))
    for token in repeated:
        row = weight[token] + CODE_LENGTH * _code(int(token), weight.shape[1])
        result[token] = row / np.sqrt(ordered_sum(row * row))
    assert len(np.unique(first_alike(result))) == len(result), "a code coincides with another vector"
    return result


def _code(token: int, width: int) -> NDArray[np.float64]:
    """A unit vector of random signs [E]."""
    signs = 2 * np.random.RandomState(token).randint(0, 2, size=width) - 1
    return np.asarray(signs / np.sqrt(width))
