"""The prefix cache filled by a Ray Data job on resources of its own, while the stage's workers wait for it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from growtx.data.packing import PackedData, open_packed
from growtx.exceptions import StoreError
from growtx.growth.assembly import assemble
from growtx.store.blobs import BlobStore
from growtx.store.manifest import Manifest
from growtx.train.distributed import any_rank, on_rank_zero, rank
from growtx.train.prefix_cache import PrefixCache
from growtx.train.settings import PrefixJobConfig

BLOCKS_PER_WORKER = 4  # so that a slow worker does not keep the others waiting


@dataclass(frozen=True)
class PrefixWork:
    """What a process needs to fill a prefix cache."""

    directory: str
    packed_path: str
    store_dir: str
    parent: Manifest
    num_frozen: int
    dtype: torch.dtype
    micro_batch: int

    def cache(self, data: PackedData) -> PrefixCache:
        return PrefixCache(self.directory, data, dtype=self.dtype, micro_batch=self.micro_batch)


class ShardFiller:
    """One worker of the job: computes the shards it is given. After the first that cannot be written it writes none."""

    def __init__(self, work: PrefixWork, config: PrefixJobConfig) -> None:
        torch.set_num_threads(max(1, int(config.cpus_per_worker)))
        self._work, self._cache = work, work.cache(open_packed(work.packed_path))
        device = "cuda" if config.use_gpu else "cpu"
        self._model = assemble(BlobStore(work.store_dir), work.parent).to(device, work.dtype).eval()
        self._problem: StoreError | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        try:
            if self._problem is None:
                self._cache.fill(batch["shard"].tolist(), self._model, self._work.num_frozen)
        except StoreError as error:
            self._problem = error
        said = ("", "") if self._problem is None else (self._problem.problem, self._problem.remedy)
        return {"problem": np.array([said[0]]), "remedy": np.array([said[1]])}


def fill_by_job(work: PrefixWork, shards: list[int], config: PrefixJobConfig) -> StoreError | None:
    """Let a Ray Data job compute shards. Collective.

    Returns:
        What kept the job from writing; then nothing that it wrote stays on the disk.
    """
    job = ThreadPoolExecutor(1).submit(run_job, work, shards, config) if rank() == 0 else None
    while any_rank([job is not None and not job.done()])[0]:  # one collective for the whole time would time out
        time.sleep(0.1)
    return on_rank_zero(lambda: job.result() if job else None)


def run_job(work: PrefixWork, shards: list[int], config: PrefixJobConfig) -> StoreError | None:
    """The job itself, for one process that is connected to Ray."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    num_blocks = min(len(shards), BLOCKS_PER_WORKER * config.num_workers)
    rows = (
        ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=num_blocks)
        .map_batches(
            ShardFiller,
            fn_constructor_args=(work, config),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=config.num_workers),
            num_cpus=config.cpus_per_worker,
            num_gpus=1 if config.use_gpu else 0,
        )
        .take_all()
    )
    problem = next((StoreError(row["problem"], row["remedy"]) for row in rows if row["problem"]), None)
    if problem is not None:
        work.cache(open_packed(work.packed_path)).remove(shards)
    return problem
