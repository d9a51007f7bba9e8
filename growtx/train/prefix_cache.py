"""The frozen prefix's activations, computed once and read by every epoch, trial and sibling that shares the prefix.

A cache is a directory named by what decides its content (blobs of the prefix, data, dtype) and holds the states
that enter the first trained block in shards of consecutive windows. A shard is written beside its place and renamed
into it, so a crash or a second process doing the same work leaves a complete shard or none.

Shapes: N windows, T positions, D hidden size.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growtx.config import fingerprint
from growtx.data.packing import PackedData, open_packed
from growtx.exceptions import StoreError
from growtx.growth.assembly import assemble
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.storage import replace_file, write_error
from growtx.store.blobs import BlobStore
from growtx.store.manifest import Manifest
from growtx.train.distributed import any_rank, on_rank_zero, rank
from growtx.train.settings import PrefixJobConfig

WINDOWS_PER_SHARD = 64


class PrefixCache:
    """Activations of the training windows of one prefix.

    Args:
        directory: on a local or shared file system; workers that do not share one fill a cache each.
        dtype: float32, or bfloat16 (stored as the same 16 bits, because numpy has no such type).
    """

    def __init__(self, directory: str, data: PackedData, *, dtype: torch.dtype, micro_batch: int) -> None:
        self._directory = Path(directory)
        self._data = data
        self.dtype = dtype
        self._micro_batch = micro_batch
        self._open: dict[int, np.ndarray] = {}

    @staticmethod
    def key(parent: Manifest, num_frozen: int, data: PackedData, dtype: torch.dtype) -> str:
        """Name of the cache: equal for all stages, trials and branches whose prefix and data are equal."""
        blocks = [[ref.blob, *ref.adapters] for ref in parent.blocks[:num_frozen]]
        return fingerprint([parent.substrate, blocks, data.fingerprint, str(dtype)])

    @staticmethod
    def shards_of(windows_N: np.ndarray) -> list[int]:
        """Shards that hold these windows."""
        return np.unique(windows_N // WINDOWS_PER_SHARD).tolist()  # type: ignore[no-any-return]

    def free_bytes(self) -> int:
        """Bytes that the file system has for the cache, including what it already takes."""
        place = self._directory
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free + sum(file.stat().st_size for file in self._directory.glob("*.npy"))

    def missing(self, shards: Iterable[int]) -> list[int]:
        return [shard for shard in shards if not self._path(shard).exists()]

    def remove(self, shards: Iterable[int]) -> None:
        """Free the space that shards take."""
        for shard in shards:
            self._path(shard).unlink(missing_ok=True)

    def num_windows(self, shards: Iterable[int]) -> int:
        return sum(len(self._windows(shard)) for shard in shards)

    def _path(self, shard: int) -> Path:
        return self._directory / f"shard-{shard:07d}.npy"

    def _windows(self, shard: int) -> np.ndarray:
        total = len(self._data.train)
        return np.arange(shard * WINDOWS_PER_SHARD, min(total, (shard + 1) * WINDOWS_PER_SHARD))

    @torch.no_grad()
    def fill(self, shards: Iterable[int], model: GrowtxForCausalLM, num_frozen: int) -> None:
        """Compute and write the shards that are still missing when their turn comes.

        The order is random in every process, so that several that fill the same cache share the work.

        Raises:
            StoreError: the disk is full; then nothing that this call wrote stays on it.
        """
        device = next(model.parameters()).device
        written: list[int] = []
        for shard in random.sample(todo := list(shards), len(todo)):
            if self._path(shard).exists():
                continue
            tokens_NT = torch.from_numpy(self._data.train.take(self._windows(shard))).long()
            states = [
                model.forward_prefix(tokens.to(device), num_frozen).to("cpu", self.dtype)
                for tokens in torch.split(tokens_NT, self._micro_batch)
            ]
            try:
                self._write(shard, torch.cat(states))
            except StoreError:
                self.remove(written)
                raise
            written.append(shard)

    def _write(self, shard: int, states_NTD: torch.Tensor) -> None:
        path = self._path(shard)
        stored = states_NTD.view(torch.int16) if self.dtype == torch.bfloat16 else states_NTD
        try:
            replace_file(path, lambda file: np.save(file, stored.numpy()), durable=False)
        except OSError as error:
            raise write_error(str(path), error) from error

    def open(self, shards: Iterable[int]) -> None:
        """Memory-map shards: from then on they can be read even if another run gives up and removes those it wrote.

        Raises:
            StoreError: one is not there any more.
        """
        for shard in shards:
            if shard not in self._open:
                self._open[shard] = self._map(shard)

    def read(self, windows_N: np.ndarray) -> torch.Tensor:
        """States [N, T, D] of these windows, memory-mapped and copied.

        Raises:
            StoreError: a shard is not there.
        """
        self.open(self.shards_of(windows_N))
        rows = [self._open[window // WINDOWS_PER_SHARD][window % WINDOWS_PER_SHARD] for window in windows_N.tolist()]
        states_NTD = torch.from_numpy(np.stack(rows))
        return states_NTD.view(torch.bfloat16) if self.dtype == torch.bfloat16 else states_NTD

    def _map(self, shard: int) -> np.ndarray:
        try:
            mapped: np.ndarray = np.load(self._path(shard), mmap_mode="r")
        except (OSError, ValueError) as error:  # deleted, or cut off by a power failure
            raise StoreError(
                f"{self._path(shard)} of the prefix cache cannot be read",
                f"Delete {self._directory} and run the same command with --resume: it will be rebuilt",
            ) from error
        return mapped


# The prefix cache filled by a Ray Data job on resources of its own, while the stage's workers wait for it.


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
    """One worker of the job: computes the shards it is given. After the first failed write, it writes no more."""

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
        What kept the job from writing, if anything; then nothing that it wrote stays on the disk.
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
