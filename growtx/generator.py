"""Seeded permutations of 0..size-1 that are computed point by point, without an array of `size` numbers.

A Feistel network over the next even power of two, walked until it falls into range (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains"). Integer arithmetic only: the same numbers on every platform.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
WordArray = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = [np.uint64(number * 0x9E3779B97F4A7C15 % 2**64) for number in range(1, 7)]


def mix64(words: WordArray) -> WordArray:
    """The finaliser of SplitMix64: every input bit changes every output bit with probability one half."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def key64(*parts: int | IntArray) -> WordArray:
    """A key per element from integers and (broadcast) arrays of integers; the order of parts matters."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        words = np.atleast_1d(np.asarray(part)).astype(np.uint64)
        key = mix64((key ^ mix64(words + _GOLDEN)) + _GOLDEN)
    return key


def permute(positions: IntArray, size: int, keys: WordArray) -> IntArray:
    """Image of each position under the permutation of 0..size-1 that its key selects.

    Args:
        positions: [n] integers in 0..size-1.
        size: number of elements, at least 1.
        keys: [n] or [1], from `key64`.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    words = positions.astype(np.uint64)
    keys = np.broadcast_to(keys, words.shape)
    words = _feistel(words, keys, half_bits)
    outside = np.flatnonzero(words >= np.uint64(size))
    while outside.size:
        words[outside] = _feistel(words[outside], keys[outside], half_bits)
        outside = outside[words[outside] >= np.uint64(size)]
    return words.astype(np.int64)


def _feistel(words: WordArray, keys: WordArray, half_bits: int) -> WordArray:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = words >> shift, words & mask
    for constant in _ROUNDS:
        left, right = right, left ^ (mix64((right + constant) ^ keys) & mask)
    return (left << shift) | right


# Random numbers from a keyed hash: the same on every platform, and any document can be made without the others.


Item = TypeVar("Item")

_WORDS = struct.Struct("<16I")


class KeyedGenerator:
    """A stream of random numbers that is a pure function of its key."""

    __slots__ = ("_block", "_key", "_words")

    def __init__(self, *key: int | str) -> None:
        self._key = "/".join(map(str, key))
        self._block = 0
        self._words: list[int] = []

    def randbelow(self, bound: int) -> int:
        """An integer in 0..bound-1; bound is at most 2**32 (the bias is below bound / 2**32)."""
        if not self._words:
            digest = hashlib.blake2b(f"{self._key}#{self._block}".encode()).digest()
            self._words = list(_WORDS.unpack(digest))
            self._block += 1
        return self._words.pop() * bound >> 32

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.randbelow(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different positions of `items`, in random order."""
        return [items[index] for index in self.sample_range(len(items), count)]

    def sample_range(self, bound: int, count: int) -> list[int]:
        """`count` different integers in 0..bound-1, in random order, without touching the others."""
        assert count <= bound
        moved: dict[int, int] = {}
        result = []
        for position in range(count):  # Fisher-Yates on a list that exists only where it was changed
            other = position + self.randbelow(bound - position)
            result.append(moved.get(other, other))
            moved[other] = moved.get(position, position)
        return result

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All items in random order."""
        return self.sample(items, len(items))


# Taking turns by weight: an endless sequence in which every member has exactly its share at any length.


def weighted_round_robin(positions: IntArray, weights: Sequence[float]) -> tuple[IntArray, IntArray]:
    """Whose turn it is at each position of the sequence, and how many turns that member had before.

    Member 0 has its turn at n when floor(n w) steps up after n. What it leaves is numbered consecutively, 0, 1, 2, ...,
    and divided among the others in the same way. So a turn is known without its predecessors, and after n positions
    member k differs from its share of n by less than k + 1.

    Args:
        positions: [n] integers from 0.
        weights: relative shares of the members, not all 0.

    Returns:
        members [n] and turns [n].
    """
    members, counts = np.empty_like(positions), np.empty_like(positions)
    rows, left = np.arange(positions.size), positions
    for member in range(len(weights)):
        share = _share_of_rest(weights, member)
        before = np.floor(left * share).astype(np.int64)
        mine = np.floor((left + 1) * share).astype(np.int64) > before
        members[rows[mine]], counts[rows[mine]] = member, before[mine]
        rows, left = rows[~mine], (left - before)[~mine]
    return members, counts


def turns_after(num_positions: int, weights: Sequence[float]) -> list[int]:
    """How many turns each member has had after so many positions of `weighted_round_robin`."""
    turns, left = [], num_positions
    for member in range(len(weights)):
        turns.append(math.floor(left * _share_of_rest(weights, member)))
        left -= turns[-1]
    return turns


def _share_of_rest(weights: Sequence[float], member: int) -> float:
    """Of what the members before leave; the last one's is exactly 1."""
    rest = sum(weights[member:])
    return weights[member] / rest if rest else 0.0
