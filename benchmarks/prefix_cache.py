"""What the prefix cache saves a stage, from an empty disk to its last step: filled, written, read back and counted.

A pass is one trial of a sweep, or one epoch: both go once over all windows. One process, one thread, no Ray: what
workers do between two messages. Both ways run in turn within a round. Windows and activations lie on the disk, and the
system's own memory of the activations is dropped before every pass. What all ways have in common is not counted: starts
of processes, evaluations, finalizing; a whole sweep therefore gains less.

Shapes: B micro batch, T positions, D hidden size, N windows.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.growth import Shape, growing_flops, random_model, single_process, stage_of
from growtx.data.packing import PackedData, PackedSplit, SourceWindows
from growtx.growth.flops import plan_prefix
from growtx.growth.freezing import prepare_for_stage
from growtx.models.counting import block_forward_flops
from growtx.train.engine import TrainEngine
from growtx.train.prefix_cache import PrefixCache
from growtx.train.settings import TrainingConfig

STAGE_SHAPE = Shape(hidden_size=256, vocab_size=4096, context_length=128, micro_batch=4, max_depth=8)


@dataclass(frozen=True)
class StageTiming:
    """Medians over rounds of a stage of so many passes.

    Attributes:
        speedup: recomputing over caching, within a round.
        bound: the same in FLOPs.
        auto: what `training.prefix=auto` does here.
    """

    num_passes: int
    recompute_seconds: float
    cached_seconds: float
    fill_seconds: float
    speedup: float
    bound: float
    auto: str


@dataclass(frozen=True)
class _Round:
    """Seconds of filling, and of each pass."""

    fill: float
    recomputed: list[float]
    cached: list[float]

    def totals(self, num_passes: int) -> tuple[float, float]:
        return sum(self.recomputed[:num_passes]), self.fill + sum(self.cached[:num_passes])

    @property
    def break_even(self) -> float:
        """Passes at which caching has cost as much as recomputing; endless where a pass saves nothing."""
        saved = statistics.mean(self.recomputed) - statistics.mean(self.cached)
        return self.fill / saved if saved > 0 else math.inf


def stage_timings(
    shape: Shape, *, depth: int, passes: Sequence[int], num_steps: int, rounds: int = 3
) -> tuple[list[StageTiming], float]:
    """Time a stage that adds block `depth`, whose passes have `num_steps` steps.

    Returns:
        A row for each number of passes, and the number of passes at which the cache breaks even.
    """
    with single_process(), tempfile.TemporaryDirectory() as directory:
        work = _Stage(shape, depth, num_steps, directory)
        work.train(None, num_steps=1)  # warm up
        measured = [_round(work, max(passes)) for _ in range(rounds)]
    rows = []
    for num_passes in passes:
        totals = [found.totals(num_passes) for found in measured]
        recompute, cached = (statistics.median(column) for column in zip(*totals, strict=True))
        speedup = statistics.median(one / other for one, other in totals)
        fill = statistics.median(found.fill for found in measured)
        bound = speedup_bound(shape, depth, num_passes)
        rows.append(StageTiming(num_passes, recompute, cached, fill, speedup, bound, work.choice(num_passes)))
    return rows, statistics.median(found.break_even for found in measured)


def _round(work: _Stage, num_passes: int) -> _Round:
    recomputed = [_seconds(lambda: work.train(None)) for _ in range(num_passes)]
    with tempfile.TemporaryDirectory() as directory:
        found = list[PrefixCache]()
        fill = _seconds(lambda: found.append(work.filled(directory)))
        cached = []
        for _ in range(num_passes):
            forget(Path(directory))
            cached.append(_seconds(lambda: work.train(found[0])))
    return _Round(fill, recomputed, cached)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def forget(directory: Path) -> None:
    """Let the system forget what it remembers of the files, so that they are read from the disk."""
    for path in directory.rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def speedup_bound(shape: Shape, depth: int, num_passes: int) -> float:
    """FLOPs of recomputing over those of filling the cache once and training on it."""
    config, length = shape.config(depth), shape.context_length
    recompute = growing_flops(config, length, num_new_blocks=1).total
    cached = growing_flops(config, length, num_new_blocks=1, prefix_cached=True).total
    fill = block_forward_flops(config, length).total * (depth - 1)
    return recompute / (cached + fill / num_passes)


class _Stage:
    """A stage in training on fixed random windows; every call of `train` is one pass over them."""

    def __init__(self, shape: Shape, depth: int, num_steps: int, directory: str) -> None:
        stage = stage_of(depth, 1)
        self._shape, self._num_steps, self._num_frozen = shape, num_steps, stage.num_frozen
        self._model = random_model(shape, depth)
        wrapped = prepare_for_stage(self._model, stage, seed=0)
        wrapped.train()
        self._engine = TrainEngine(wrapped, stage, TrainingConfig(global_batch_size=shape.micro_batch))
        self._data = _random_data(shape, num_steps * shape.micro_batch, directory)

    def choice(self, num_passes: int) -> str:
        """What `training.prefix=auto` chooses for a stage of so many passes."""
        num_windows = len(self._data.train)
        return plan_prefix(
            self._shape.config(self._shape.max_depth),
            num_frozen=self._num_frozen,
            num_samples=num_windows * num_passes,
            num_windows_to_cache=num_windows,
            num_windows_missing=num_windows,
            bytes_per_number=4,
            bytes_available=2**40,
        ).choice

    def filled(self, directory: str) -> PrefixCache:
        """A new cache with the activations of all windows."""
        cache = PrefixCache(directory, self._data, dtype=torch.float32, micro_batch=self._shape.micro_batch)
        cache.fill(cache.shards, self._model, self._num_frozen)
        return cache

    def train(self, cache: PrefixCache | None, num_steps: int | None = None) -> None:
        """One pass: each step on the next windows, the prefix recomputed or read."""
        num_targets = self._shape.micro_batch * (self._shape.context_length - 1)
        for batch in self._batches(cache, num_steps or self._num_steps):
            self._engine.step([batch], num_targets, 1.0)

    def _batches(self, cache: PrefixCache | None, num_steps: int) -> Iterator[dict[str, Any]]:
        for step in range(num_steps):
            windows_B = np.arange(step * self._shape.micro_batch, (step + 1) * self._shape.micro_batch)
            tokens_BT = torch.from_numpy(self._data.train.take(windows_B)).long()
            batch: dict[str, Any] = {"labels": tokens_BT}
            if cache is None:
                yield batch | {"input_ids": tokens_BT}
            else:
                yield batch | {"prefix_hidden_states": cache.read(windows_B), "first_block": self._num_frozen}


def _random_data(shape: Shape, num_windows: int, directory: str) -> PackedData:
    size_NT = (num_windows, shape.context_length)
    windows_NT = np.memmap(f"{directory}/windows", dtype=np.int32, mode="w+", shape=size_NT)
    windows_NT[:] = np.random.default_rng(0).integers(0, shape.vocab_size, size_NT, dtype=np.int32)
    size = windows_NT.size
    source = SourceWindows("random", windows_NT, num_documents=1, num_tokens=size, num_bytes=size, sha256="random")
    split = PackedSplit((source,))
    return PackedData("nowhere", split, split, (1.0,), shape.context_length, "random", -1)
