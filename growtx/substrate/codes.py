"""Substrates that are not drawn: the bits of token ids, random codes, and random vectors to start learning from.

Legend: V tokens, D hidden size, E stored width.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from growtx.exceptions import SubstrateError
from growtx.generator import key64, permute
from growtx.substrate.collisions import first_alike


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


def binary_codes(vocab_size: int, hidden_size: int, recode_seed: int | None = None) -> NDArray[np.float32]:
    """The bits of each token id, most significant first, 0 or 1 as published: float32 [V, E].

    Columns beyond the bits that V needs come first and are 0, so that the rank is at most ceil(log2 V).

    Args:
        recode_seed: replace every code c by A c xor b, with an A of GL(E, 2) and a b drawn from this seed (Bochkov,
            arXiv:2605.09751): another code of the same ids, in which neighbouring ids no longer share their first bits.
    """
    codes = _bits(np.arange(vocab_size), binary_width(vocab_size, hidden_size))
    return (codes if recode_seed is None else affine_recoding(codes, recode_seed)).astype(np.float32)


def _bits(numbers: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Most significant first: [V, E]."""
    return (numbers[:, None] >> np.arange(width - 1, -1, -1)) & 1


def affine_recoding(codes_VE: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A c xor b of every row c, over the field of two elements; A can be inverted, so no two rows become the same."""
    random = np.random.RandomState(seed)
    width = codes_VE.shape[1]
    matrix = random.randint(0, 2, size=(width, width))
    while not _is_invertible(matrix):  # three in ten are
        matrix = random.randint(0, 2, size=(width, width))
    shift = random.randint(0, 2, size=width)
    return np.asarray((codes_VE @ matrix.T + shift) % 2, dtype=np.int64)


def _is_invertible(matrix: NDArray[np.int64]) -> bool:
    """By elimination over the field of two elements."""
    rows = matrix.copy() % 2
    for column in range(len(rows)):
        below = np.flatnonzero(rows[column:, column])
        if not len(below):
            return False
        pivot = column + int(below[0])
        rows[[column, pivot]] = rows[[pivot, column]]
        others = np.flatnonzero(rows[:, column])
        rows[others[others != column]] ^= rows[column]
    return True


def check_random_width(vocab_size: int, hidden_size: int, width: int, *, is_bits: bool) -> None:
    """Refuse a width that does not fill D, or has fewer codes than there are tokens.

    Raises:
        SubstrateError: naming widths that do.
    """
    least = max(1, math.ceil(math.log2(vocab_size))) if is_bits else 1
    if hidden_size % width or width < least:
        fitting = [str(divisor) for divisor in range(least, hidden_size + 1) if hidden_size % divisor == 0]
        problem = (
            f"substrate.width={width} does not divide hidden_size={hidden_size}"
            if hidden_size % width
            else f"substrate.width={width}: {vocab_size} tokens need {least} bits or more to have codes of their own"
        )
        raise SubstrateError(problem, f"Use one of {', '.join(fitting)}" if fitting else "Raise model.hidden_size")


def random_codes(vocab_size: int, width: int, seed: int, *, is_bits: bool) -> NDArray[np.float32]:
    """Codes that say nothing about their tokens, no two alike: float32 [V, E].

    Bits are 0 or 1; numbers are normal, centred over the vocabulary and of length 1. (The published ones were also
    rotated to their principal axes, of which a normal cloud has none.) After the models
    `emergent-semantics-model-{16,64,256,1024}-{bit,float}` of Bochkov, arXiv:2507.04886.
    """
    random = np.random.RandomState(seed)
    if not is_bits:
        values = random.standard_normal((vocab_size, width))
        # Running sums are added in order on every machine, so that the codes are the same to the last bit.
        values -= np.cumsum(values, axis=0)[-1] / vocab_size
        lengths = np.sqrt(np.cumsum(values**2, axis=1)[:, -1:])
        return (values / lengths).astype(np.float32)
    if width <= _LARGEST_PERMUTATION:  # few codes for many tokens: the first of all codes in a random order
        return _bits(permute(np.arange(vocab_size), 2**width, key64(seed, width)), width).astype(np.float32)
    codes = random.randint(0, 2, size=(vocab_size, width))
    while len(again := np.flatnonzero(first_alike(codes) != np.arange(vocab_size))):
        codes[again] = random.randint(0, 2, size=(len(again), width))
    return codes.astype(np.float32)


_LARGEST_PERMUTATION = 32  # bits


def learned_start(vocab_size: int, hidden_size: int, seed: int) -> NDArray[np.float32]:
    """Gaussian vectors of length about 1, the scale on which the drawn substrates are: float32 [V, D]."""
    values = np.random.RandomState(seed).standard_normal((vocab_size, hidden_size))
    return (values / math.sqrt(hidden_size)).astype(np.float32)
