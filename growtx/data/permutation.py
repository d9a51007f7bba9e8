"""Seeded permutations of 0..size-1 that are computed point by point, without an array of `size` numbers.

A Feistel network over the next even power of two, walked until it falls into range (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains"). Integer arithmetic only: the same numbers on every platform.
"""

from __future__ import annotations

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
