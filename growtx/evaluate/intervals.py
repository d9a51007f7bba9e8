"""95 % intervals: Wilson for shares, the percentile bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 1000
Z_95 = 1.959963984540054
Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval, where one is known."""

    value: float
    low: float | None
    high: float | None


def wilson(num_correct: float, num_items: int) -> Interval:
    """A share with Wilson's score interval, which also holds near 0 and 1 and for few items."""
    share = num_correct / num_items
    spread = Z_95**2 / num_items
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / num_items + spread / (4 * num_items)) / (1 + spread)
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def bootstrap_mean(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """The mean of independent items; if all are 0 or 1 it gets Wilson's interval instead."""
    array = np.asarray(values, dtype=np.float64)
    if np.isin(array, (0.0, 1.0)).all():
        return wilson(float(array.sum()), array.size)
    return bootstrap(array.size, lambda counts: counts @ array / array.size, seed)


def bootstrap_ratio(numerators: npt.ArrayLike, denominators: npt.ArrayLike, seed: int = 0) -> Interval:
    """The ratio of two sums over the same items, such as bits and bytes of windows."""
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    return bootstrap(above.size, lambda counts: (counts @ above) / (counts @ below), seed)


def bootstrap(num_items: int, statistic: Callable[[Floats], Floats], seed: int = 0) -> Interval:
    """The percentile bootstrap of a statistic over `num_items` items.

    Args:
        statistic: maps how often each item is drawn [R, num_items] to R values; all ones is the sample itself.
    """
    value = float(statistic(np.ones((1, num_items)))[0])
    generator = np.random.default_rng(seed)
    rows_per_chunk = max(1, 2_000_000 // num_items)
    drawn: list[Floats] = []
    for start in range(0, NUM_RESAMPLES, rows_per_chunk):
        rows = min(rows_per_chunk, NUM_RESAMPLES - start)
        counts = generator.multinomial(num_items, np.full(num_items, 1 / num_items), size=rows).astype(np.float64)
        drawn.append(statistic(counts))
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return Interval(value, float(low), float(high))
