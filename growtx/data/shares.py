"""Taking turns by weight: an endless sequence in which every member has exactly its share at any length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from growtx.data.permutation import IntArray


def turns(positions: IntArray, weights: Sequence[float]) -> tuple[IntArray, IntArray]:
    """Whose turn it is at each position of the sequence, and how many turns that member had before.

    Member 0 has its turn at n when floor(n w) steps up after n. What it leaves is numbered through as 0, 1, 2, ...
    and divided among the others in the same way. So a turn is known without its predecessors, and after n positions
    member k differs from its share of n by less than k + 1.

    Args:
        positions: [n] integers from 0.
        weights: relative shares of the members, all above 0.

    Returns:
        members [n] and turns [n].
    """
    members, counts = np.empty_like(positions), np.empty_like(positions)
    rows, left = np.arange(positions.size), positions
    for member, weight in enumerate(weights):
        share = weight / sum(weights[member:])  # the last one's is exactly 1
        before = np.floor(left * share).astype(np.int64)
        mine = np.floor((left + 1) * share).astype(np.int64) > before
        members[rows[mine]], counts[rows[mine]] = member, before[mine]
        rows, left = rows[~mine], (left - before)[~mine]
    return members, counts
