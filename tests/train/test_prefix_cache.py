"""Cached states of the prefix are those that recomputing gives, whoever computes them, whatever happens meanwhile."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from growtx.data.packing import PackedData
from growtx.exceptions import StoreError
from growtx.growth.assembly import grow
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


@pytest.fixture
def model() -> GrowtxForCausalLM:
    (stage,) = tiny.stages(stages=[{"add": 3}])
    return grow(tiny.config(3), stage, None, tiny.substrate(), seed=0).eval()


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
