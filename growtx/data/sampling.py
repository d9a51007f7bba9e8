"""Which windows a global step trains on: a pure function of (seed, step), whatever the number of workers.

Shape legend: B global batch size (windows per step, all workers together).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from growtx.data.permutation import IntArray, key64, permute
from growtx.data.shares import turns


@dataclass(frozen=True)
class Mix:
    """Sources to sample from: windows of each and its relative weight, in one order.

    Windows of all sources are numbered through: source 0 has 0..num_windows[0]-1, source 1 goes on from there.
    """

    num_windows: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.num_windows) == len(self.weights) > 0
        assert all(size > 0 for size in self.num_windows)
        assert all(weight > 0 for weight in self.weights)

    @property
    def shares(self) -> tuple[float, ...]:
        """Weights that sum to one."""
        return tuple(weight / sum(self.weights) for weight in self.weights)


def window_indices(mix: Mix, *, seed: int, step: int, global_batch_size: int, num_samples_before: int = 0) -> IntArray:
    """Windows of global step `step`, as [B] numbers into the mix.

    After n samples of a run every source has had its share of n to within one window per source. A source is
    traversed in a seeded order, a new one in every epoch, so no window returns before its source is through.

    Args:
        mix: the sources.
        seed: of the run.
        step: counted from 0.
        global_batch_size: windows per step over all workers; each takes its slice of the result.
        num_samples_before: samples that were drawn before step 0, where stages go on with other batch sizes.
    """
    start = num_samples_before + step * global_batch_size
    sources_B, turns_B = turns(np.arange(start, start + global_batch_size), mix.weights)
    sizes = np.array(mix.num_windows)
    offsets = np.cumsum(sizes) - sizes
    windows_B = np.empty(global_batch_size, dtype=np.int64)
    for source, size in enumerate(mix.num_windows):
        rows = np.flatnonzero(sources_B == source)
        epochs, positions = np.divmod(turns_B[rows], size)
        windows_B[rows] = offsets[source] + permute(positions, size, key64(seed, source, epochs))
    # Sources alternate regularly; without this a worker's slice could hold one source only.
    order = permute(np.arange(global_batch_size), global_batch_size, key64(seed, -1, step))
    return windows_B[order]
