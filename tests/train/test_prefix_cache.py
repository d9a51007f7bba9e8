"""Cached states of the prefix are those that recomputing gives, whoever computes them, whatever happens meanwhile."""

from __future__ import annotations

import errno
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growtx.data.packing import PackedData
from growtx.exceptions import StoreError
from growtx.growth.assembly import build_stage_model
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.train import prefix_cache
from growtx.train.prefix_cache import PrefixCache
from tests import tiny
from tests.train.windows import packed

NUM_FROZEN = 2


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "WINDOWS_PER_SHARD", 4)


@pytest.fixture
def data() -> PackedData:
    return packed(train=(6, 4))


def new_model() -> GrowtxForCausalLM:
    (stage,) = tiny.stages(stages=[{"add": 3}])
    return build_stage_model(tiny.config(3), stage, None, tiny.substrate(), seed=0).eval()


@pytest.fixture
def model() -> GrowtxForCausalLM:
    return new_model()


def cache_in(path: Path, data: PackedData, dtype: torch.dtype = torch.float32) -> PrefixCache:
    return PrefixCache(str(path), data, dtype=dtype, micro_batch=3)


def test_reading_gives_what_recomputing_gives(tmp_path: Path, data: PackedData, model: GrowtxForCausalLM) -> None:
    cache, windows = cache_in(tmp_path, data), np.array([7, 0, 9, 7])
    cache.fill(cache.shards_of(windows), model, NUM_FROZEN)
    expected = model.forward_prefix(torch.from_numpy(data.train.take(windows)).long(), NUM_FROZEN)
    assert (cache.read(windows) - expected).abs().max() <= 1e-5


def test_bf16_is_stored_in_its_own_16_bits(tmp_path: Path, data: PackedData, model: GrowtxForCausalLM) -> None:
    cache = cache_in(tmp_path, data, torch.bfloat16)
    cache.fill([0], model, NUM_FROZEN)
    states = cache.read(np.array([1, 2]))
    expected = model.forward_prefix(torch.from_numpy(data.train.take(np.array([1, 2]))).long(), NUM_FROZEN)
    assert states.dtype == torch.bfloat16 and torch.equal(states, expected.bfloat16())


def test_only_what_is_missing_is_computed(tmp_path: Path, data: PackedData, model: GrowtxForCausalLM) -> None:
    cache = cache_in(tmp_path, data)
    assert cache.missing([0, 1, 2]) == [0, 1, 2] and cache.num_windows([0, 1, 2]) == 10
    cache.fill([1], model, NUM_FROZEN)
    assert cache.missing([0, 1, 2]) == [0, 2]


def test_a_full_disk_leaves_no_half_shard(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    cache = cache_in(tmp_path, data)
    with pytest.raises(StoreError, match="the disk is full"):
        cache.fill([0], model, NUM_FROZEN)
    assert list(tmp_path.iterdir()) == []


def fill_together(path: Path, barrier: Any) -> None:
    """One of several processes at the same cache."""
    prefix_cache.WINDOWS_PER_SHARD = 4
    torch.set_num_threads(1)
    cache = cache_in(path, packed(train=(30, 30)))
    barrier.wait()
    cache.fill(range(15), new_model(), NUM_FROZEN)


def test_two_processes_that_fill_a_cache_at_the_same_time_leave_every_shard_whole_and_once(
    tmp_path: Path, model: GrowtxForCausalLM
) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(2)
    fillers = [context.Process(target=fill_together, args=(tmp_path, barrier)) for _ in range(2)]
    for filler in fillers:
        filler.start()
    cache = cache_in(tmp_path, packed(train=(30, 30)))
    while any(filler.is_alive() for filler in fillers):  # what is there can be read while the others write
        there = [shard for shard in range(15) if shard not in cache.missing(range(15))]
        cache.open(there)
        time.sleep(0.01)
    for filler in fillers:
        filler.join()
        assert filler.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"shard-{shard:07d}.npy" for shard in range(15)]
    windows = np.arange(60)
    expected = model.forward_prefix(torch.from_numpy(cache._data.train.take(windows)).long(), NUM_FROZEN)
    assert (cache_in(tmp_path, cache._data).read(windows) - expected).abs().max() <= 1e-5


def test_what_another_run_removes_can_be_read_by_the_one_that_opened_it(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM
) -> None:
    cache, other = cache_in(tmp_path, data), cache_in(tmp_path, data)
    cache.fill([0, 1], model, NUM_FROZEN)
    cache.open([0, 1])
    before = cache.read(np.array([1, 6]))
    other.remove([0, 1])
    assert torch.equal(cache.read(np.array([1, 6])), before)
    with pytest.raises(StoreError, match="cannot be read"):
        other.open([0])
