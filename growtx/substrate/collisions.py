"""Tokens that share a vector, and the code that tells them apart.

Legend: V tokens, E components.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtx.exceptions import SubstrateError
from growtx.substrate.eigen import ordered_sum

MAX_ATTEMPTS = 1000
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
    alike = first_alike(weight) != np.arange(len(weight))
    taken = {row.tobytes() for row in weight[~alike]}
    for token in np.flatnonzero(alike):
        result[token] = row = _row_of_its_own(weight[token], int(token), taken)
        taken.add(row.tobytes())
    return result


def _row_of_its_own(row: NDArray[np.float32], token: int, taken: Container[bytes]) -> NDArray[np.float32]:
    """The row with a code; in a few components the first codes may be taken by other look-alikes."""
    for attempt in range(MAX_ATTEMPTS):
        coded = row + CODE_LENGTH * _code(token, attempt, len(row))
        unit: NDArray[np.float32] = (coded / np.sqrt(ordered_sum(coded * coded))).astype(np.float32)
        if unit.tobytes() not in taken:
            return unit
    raise SubstrateError(
        f"More tokens look like token {token} than codes of {len(row)} components can tell apart",
        "Set a larger model.hidden_size, substrate.kind=binary, or a font that has glyphs for them (substrate.font)",
    )


def _code(token: int, attempt: int, width: int) -> NDArray[np.float64]:
    """A unit vector of random signs [E]."""
    random = np.random.RandomState([token, attempt] if attempt else token)
    signs = 2 * random.randint(0, 2, size=width) - 1
    return np.asarray(signs / np.sqrt(width))
