"""What the shared prefix cache saves a sweep: the work of T trials of one stage with it and without it.

One process, one thread, no Ray: what the trials' workers do between two messages. The cache is real (filled, written
and read in every round, with filling included in its time), and both ways run in turn within a round.

Shapes: B micro batch, T positions, D hidden size, N windows.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.growth import Shape, growing_flops, random_model, single_process, stage_of
from growtx.data.packing import PackedData, PackedSplit, SourceWindows
from growtx.growth.freezing import prepare_for_stage
from growtx.models.counting import block_forward_flops
from growtx.train.engine import TrainEngine
from growtx.train.prefix_cache import PrefixCache
from growtx.train.settings import TrainingConfig

SWEEP_SHAPE = Shape(hidden_size=256, vocab_size=4096, context_length=128, micro_batch=4, max_depth=8)


@dataclass(frozen=True)
class SweepTiming:
    """Medians over rounds; `speedup` is recomputing over sharing within a round, `bound` the same in FLOPs."""

    num_trials: int
    depth: int
    recompute_seconds: float
    shared_seconds: float
    fill_seconds: float
    speedup: float
    bound: float


def sweep_timing(shape: Shape, *, depth: int, num_trials: int, num_steps: int, rounds: int = 3) -> SweepTiming:
    """Time `num_trials` trials of a stage that adds block `depth`, each of `num_steps` steps on the same windows."""
    with single_process():
        work = _Trials(shape, depth, num_steps)
        work.train(None, num_steps=1)  # warm up
        timings = [_round(work, num_trials) for _ in range(rounds)]
    recompute, shared, fill = (statistics.median(column) for column in zip(*timings, strict=True))
    speedup = statistics.median(one / other for one, other, _ in timings)
    bound = speedup_bound(shape, depth, num_trials)
    return SweepTiming(num_trials, depth, recompute, shared, fill, speedup, bound)


def _round(work: _Trials, num_trials: int) -> tuple[float, float, float]:
    start = time.perf_counter()
    for _ in range(num_trials):
        work.train(None)
    between = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        cache = work.filled(directory)
        filled = time.perf_counter()
        for _ in range(num_trials):
            work.train(cache)
        end = time.perf_counter()
    return between - start, end - between, filled - between


def speedup_bound(shape: Shape, depth: int, num_trials: int) -> float:
    """FLOPs of recomputing over those of filling the cache once and training on it."""
    config, length = shape.config(depth), shape.context_length
    recompute = growing_flops(config, length, num_new_blocks=1).total
    cached = growing_flops(config, length, num_new_blocks=1, prefix_cached=True).total
    fill = block_forward_flops(config, length).total * (depth - 1)
    return recompute / (cached + fill / num_trials)


class _Trials:
    """A stage in training on fixed random windows; every call trains as one trial does."""

    def __init__(self, shape: Shape, depth: int, num_steps: int) -> None:
        stage = stage_of(depth, 1)
        self._shape, self._num_steps, self._num_frozen = shape, num_steps, stage.num_frozen
        self._model = random_model(shape, depth)
        wrapped = prepare_for_stage(self._model, stage, seed=0)
        wrapped.train()
        self._engine = TrainEngine(wrapped, stage, TrainingConfig(global_batch_size=shape.micro_batch))
        self._data = _random_data(shape, num_steps * shape.micro_batch)

    def filled(self, directory: str) -> PrefixCache:
        """A new cache with the activations of all windows."""
        cache = PrefixCache(directory, self._data, dtype=torch.float32, micro_batch=self._shape.micro_batch)
        cache.fill(cache.shards_of(np.arange(len(self._data.train))), self._model, self._num_frozen)
        return cache

    def train(self, cache: PrefixCache | None, num_steps: int | None = None) -> None:
        """One trial: each step on the next windows, the prefix recomputed or read."""
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


def _random_data(shape: Shape, num_windows: int) -> PackedData:
    windows_NT = np.random.default_rng(0).integers(
        0, shape.vocab_size, (num_windows, shape.context_length), dtype=np.int32
    )
    size = windows_NT.size
    source = SourceWindows("random", windows_NT, num_documents=1, num_tokens=size, num_bytes=size, sha256="random")
    split = PackedSplit((source,))
    return PackedData("nowhere", split, split, (1.0,), shape.context_length, "random", -1)
