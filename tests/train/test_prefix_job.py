"""The job that fills a prefix cache: its workers write what inline ones would, and say what keeps them from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from growtx.exceptions import StoreError
from growtx.storage import Storage
from growtx.store.manifest import list_manifests, read_manifest
from growtx.train import prefix_cache
from growtx.train.prefix_cache import PrefixCache, PrefixWork, ShardFiller, run_job
from growtx.train.settings import PrefixJobConfig
from tests.train.windows import packed

DATA = packed(train=(6, 4))


@pytest.fixture
def work(tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> PrefixWork:
    monkeypatch.setattr(prefix_cache, "open_packed", lambda path, local_bytes: DATA)
    run = Storage(str(finished_run))
    parent = read_manifest(run, list_manifests(run)[-1])  # with adapters merged into its blocks
    return PrefixWork(
        str(tmp_path), np.arange(10), "packed", None, run.root, parent, num_frozen=2, dtype=torch.float32, micro_batch=4
    )


def test_a_worker_of_the_job_writes_what_the_sealed_prefix_computes(work: PrefixWork) -> None:
    filler = ShardFiller(work, PrefixJobConfig())
    assert filler({"shard": np.array([0])}) == {"problem": np.array([""]), "remedy": np.array([""])}
    expected = filler._model.forward_prefix(torch.from_numpy(DATA.train.take(np.arange(10))).long(), 2)
    assert torch.allclose(work.cache(DATA).read(np.arange(10)), expected, atol=1e-6)


def test_a_worker_that_cannot_write_says_why_and_tries_no_further(
    work: PrefixWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def full(self: PrefixCache, shard: int, states: torch.Tensor) -> None:
        tried.append(shard)
        raise StoreError("the disk is full", "Free some space")

    monkeypatch.setattr(PrefixCache, "_write", full)
    filler = ShardFiller(work, PrefixJobConfig())
    for _ in range(2):
        row = filler({"shard": np.array([0])})
        assert (row["problem"].item(), row["remedy"].item()) == ("the disk is full", "Free some space")
    assert tried == [0]


@pytest.mark.parametrize("problem", ["", "the disk is full"])
def test_what_a_job_wrote_stays_unless_something_kept_it_from_writing_the_rest(
    problem: str, work: PrefixWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the job's rows as Ray Data would return them."""
    import ray.data

    shards = work.cache(DATA).shards
    rows = [{"problem": "", "remedy": ""}, {"problem": problem, "remedy": "Free some space"}]

    def iter_rows() -> list[dict[str, str]]:
        ShardFiller(work, PrefixJobConfig())({"shard": np.array(shards)})
        return rows

    blocks = SimpleNamespace(map_batches=lambda *_, **__: SimpleNamespace(iter_rows=iter_rows))
    monkeypatch.setattr(ray.data, "from_items", lambda items, **_: blocks)
    found = run_job(work, shards, PrefixJobConfig())
    assert (found.problem if found else "") == problem
    assert work.cache(DATA).missing(shards) == (shards if problem else [])
