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
from growtx.store.manifest import BlockRef
from growtx.train import prefix_cache
from growtx.train.prefix_cache import PrefixCache, find_problem_of_shard
from tests import tiny
from tests.store.manifests import manifest
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
    cache.fill(cache.shards, model, NUM_FROZEN)
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


def test_the_cache_of_a_run_in_a_bucket_lies_on_each_node(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "node"))
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")
    places = []
    for address in ("s3://bucket/cache/prefix/a", "s3://bucket/cache/prefix/b"):
        cache = PrefixCache(address, data, dtype=torch.float32, micro_batch=2)
        cache.fill([0], model, NUM_FROZEN)
        assert cache.missing([0, 1]) == [1]
        places = sorted((tmp_path / "node").rglob("*.npy"))
    assert len(places) == 2 and not list((tmp_path / "worker").iterdir())


def test_filling_ends_after_the_shard_in_which_a_stop_is_heard(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM
) -> None:
    cache, answers = cache_in(tmp_path, data), iter([False, True])
    cache.fill([0, 1, 2], model, NUM_FROZEN, lambda: next(answers))
    assert len(cache.missing([0, 1, 2])) == 2


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_hash(path: Path) -> None:
    """As an earlier version wrote it."""
    path.write_bytes(path.read_bytes()[:-40])


def take_the_next(path: Path) -> None:
    path.write_bytes(path.with_name("shard-0000001.npy").read_bytes())


@pytest.mark.parametrize("damage", [zero, flip, cut, empty, without_hash, take_the_next])
def test_a_damaged_shard_is_never_read_and_computed_again(
    damage: Any, tmp_path: Path, data: PackedData, model: GrowtxForCausalLM
) -> None:
    directory = tmp_path / "cache"
    cache, windows = cache_in(directory, data), np.arange(10)
    cache.fill([0, 1, 2], model, NUM_FROZEN)
    expected = cache.read(windows)
    damage(directory / "shard-0000000.npy")
    again = cache_in(directory, data)
    assert again.missing([0, 1, 2]) == [0]
    with pytest.raises(StoreError, match=r"shard-0000000\.npy of the prefix cache cannot be read"):
        again.read(windows)
    again.fill([0, 1, 2], model, NUM_FROZEN)
    assert again.missing([0, 1, 2]) == [] and torch.equal(again.read(windows), expected)


def test_a_shard_of_another_cache_is_not_one_of_this(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM
) -> None:
    cache, other = cache_in(tmp_path / "a", data), cache_in(tmp_path / "b", data)
    cache.fill([0], model, NUM_FROZEN)
    (tmp_path / "b").mkdir()
    (tmp_path / "a/shard-0000000.npy").rename(tmp_path / "b/shard-0000000.npy")
    assert other.missing([0]) == [0]
    (tmp_path / "b/shard-0000000.npy").rename(tmp_path / "a/shard-0000000.npy")
    assert cache.missing([0]) == [], "moving one back and forth does it no harm"


def test_shards_are_hashed_once_on_a_node(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "node"))
    cache = cache_in(tmp_path / "cache", data)
    cache.fill([0, 1, 2], model, NUM_FROZEN)
    cache.open([0, 1, 2])
    monkeypatch.setattr(prefix_cache, "_content_problem", lambda *_: "it was read")
    assert cache_in(tmp_path / "cache", data).missing([0, 1, 2]) == []
    path = tmp_path / "cache/shard-0000001.npy"
    path.write_bytes(path.read_bytes())
    assert cache_in(tmp_path / "cache", data).missing([0, 1, 2]) == [1]
    assert find_problem_of_shard(path.with_name("shard-0000000.npy"), force=True) == "it was read"


def test_two_models_of_the_same_blobs_do_not_share_a_cache() -> None:
    parent = manifest(2, None, model={"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2})

    def key(**changes: Any) -> str:
        changed = parent.model_copy(update={"model": parent.model | changes})
        return PrefixCache.key(changed, 2, "data", torch.float32)

    assert key() == key(num_hidden_layers=3) == key(num_layers_for_init=9)
    others = {key(num_attention_heads=4), key(rope_theta=1.0), key(layer_norm_eps=1e-3), key(hidden_size=8)}
    assert len(others | {key()}) == 5


def test_whatever_decides_what_a_prefix_computes_is_in_the_name_of_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    low, middle, top = (BlockRef(blob=digit * 64, adapters=(other * 64,)) for digit, other in ("14", "25", "36"))
    parent = manifest(3, None, blocks=(low, middle, top))

    def key(num_frozen: int = 2, data: str = "data", dtype: torch.dtype = torch.float32, **changes: Any) -> str:
        return PrefixCache.key(parent.model_copy(update=changes), num_frozen, data, dtype)

    merged = BlockRef(blob=low.blob)
    others = [
        key(num_frozen=1),
        key(num_frozen=3),
        key(data="other"),
        key(dtype=torch.bfloat16),
        key(substrate="9" * 64),
        key(blocks=(middle, low, top)),
        key(blocks=(low, top, top)),
        key(blocks=(merged, middle, top)),
        key(blocks=(BlockRef(blob=low.blob, adapters=(*low.adapters, "7" * 64)), middle, top)),
    ]
    assert len({key(), *others}) == len(others) + 1
    same = [key(blocks=(low, middle)), key(blocks=(low, middle, low)), key(head="8" * 64), key(name="another")]
    assert set(same) == {key()}, "what stands above the prefix does not matter"
    before = key()
    monkeypatch.setattr(prefix_cache, "FORMAT", prefix_cache.FORMAT + 1)
    assert key() != before


def test_the_name_of_a_cache_is_the_same_in_every_version() -> None:
    """A change of it makes every cache useless, and one that is forgotten makes one wrong: it must be meant."""
    parent = manifest(1, None, blocks=(BlockRef(blob="1" * 64, adapters=("2" * 64,)),))
    assert (
        PrefixCache.key(parent, 1, "data", torch.float32)
        == "19abd56ae11e4d2e974b8384b5d478d9c4f7f8d5acef6c1d77656e5f9142f4ad"
    )


def test_a_shard_of_fewer_windows_is_computed_again(tmp_path: Path, data: PackedData, model: GrowtxForCausalLM) -> None:
    cache_in(tmp_path, data).fill([0, 1, 2], model, NUM_FROZEN)
    assert cache_in(tmp_path, packed(train=(6, 5))).missing([0, 1, 2]) == [2]
    assert cache_in(tmp_path, packed(train=(6, 3))).missing([0, 1, 2]) == [], "one of more holds what comes next"


def test_only_windows_that_are_visited_are_computed_and_each_is_read_as_its_own(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM
) -> None:
    order = np.array([9, 2, 5, 0, 7])
    cache = PrefixCache(str(tmp_path), data, order, dtype=torch.float32, micro_batch=3)
    cache.fill(cache.shards, model, NUM_FROZEN)
    assert [np.load(path).shape[0] for path in sorted(tmp_path.iterdir())] == [4, 1]
    for windows in (np.array([7, 9, 9, 0]), order):
        expected = model.forward_prefix(torch.from_numpy(data.train.take(windows)).long(), NUM_FROZEN)
        assert (cache.read(windows) - expected).abs().max() <= 1e-5
    for other in (1, 8):
        with pytest.raises(AssertionError, match="not visited"):
            cache.read(np.array([other]))


def test_a_shard_that_another_version_has_hashed_in_its_way_is_computed_again(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM
) -> None:
    cache = cache_in(tmp_path, data)
    cache.fill([0], model, NUM_FROZEN)
    path = tmp_path / "shard-0000000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"9")
    assert cache.missing([0]) == [0]
    assert "an earlier version wrote it" in str(find_problem_of_shard(path))


def test_a_disk_that_fills_up_is_left_as_it_was(
    tmp_path: Path, data: PackedData, model: GrowtxForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = PrefixCache._write, []

    def second_does_not_fit(self: PrefixCache, shard: int, states: torch.Tensor) -> None:
        if written:
            raise StoreError("the disk is full")
        written.append(shard)
        write(self, shard, states)

    cache = cache_in(tmp_path, data)
    cache.fill([0], model, NUM_FROZEN)
    monkeypatch.setattr(PrefixCache, "_write", second_does_not_fit)
    with pytest.raises(StoreError, match="the disk is full"):
        cache.fill([0, 1, 2], model, NUM_FROZEN)
    assert written and [path.name for path in tmp_path.iterdir()] == ["shard-0000000.npy"], "what others had stays"


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
