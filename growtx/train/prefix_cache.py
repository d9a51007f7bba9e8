"""The frozen prefix's activations, computed once and read by every epoch, trial and sibling that shares the prefix.

A cache is a directory named by what decides its content (blobs of the prefix, data, dtype; below that the order in
which training visits windows) and holds the states that enter the first trained block, in shards of windows that are
visited one after the other: of data of which little is visited, only that is computed. A shard is written beside its
place and renamed into it when it is on the disk, so a crash or a second process doing the same work leaves a complete
shard or none.
It ends with the sha256 of its place and its content, which every node checks once.

Shapes: N windows, T positions, D hidden size.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from growtx.checked import check_once, node_copy_of
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

logger = logging.getLogger(__name__)
WINDOWS_PER_SHARD = 64
FORMAT = 2  # 1 had no hash at the end; its caches have other names, and are left for people to delete
_MAGIC = b"growtxP2"
_NUM_SHA256 = 32
_NUM_TRAILER = _NUM_SHA256 + len(_MAGIC)  # bytes
_NOT_OF_A_PREFIX = ("num_hidden_layers", "num_layers_for_init", "initializer_range")  # what new blocks are drawn by


class PrefixCache:
    """Activations of the training windows of one prefix.

    Args:
        directory: on a local or shared file system; workers that do not share one fill a cache each, as they do where
            this is an address elsewhere: activations are read too often to lie in a bucket.
        order_N: windows to cache in the order in which they are visited; None: all, as they are numbered.
        dtype: float32, or bfloat16 (stored as the same 16 bits, because numpy has no such type).
    """

    def __init__(
        self,
        directory: str,
        data: PackedData,
        order_N: np.ndarray | None = None,
        *,
        dtype: torch.dtype,
        micro_batch: int,
    ) -> None:
        self._directory = node_copy_of(directory) if "://" in directory else Path(directory)
        self._data = data
        self._order_N = np.arange(len(data.train)) if order_N is None else order_N
        self._places_N = np.argsort(self._order_N)
        self._sorted_N = self._order_N[self._places_N]
        self.dtype = dtype
        self._micro_batch = micro_batch
        self._open: dict[int, np.ndarray] = {}

    @staticmethod
    def key(parent: Manifest, num_frozen: int, data_fingerprint: str, dtype: torch.dtype) -> str:
        """Name of the cache: equal for all stages, trials and branches whose prefix and data are equal."""
        blocks = [[ref.blob, *ref.adapters] for ref in parent.blocks[:num_frozen]]
        shape = {key: value for key, value in parent.model.items() if key not in _NOT_OF_A_PREFIX}
        return fingerprint([FORMAT, shape, parent.substrate, blocks, data_fingerprint, str(dtype)])

    @property
    def shards(self) -> list[int]:
        """All of them."""
        return list(range(-(-len(self._order_N) // WINDOWS_PER_SHARD)))

    def _places(self, windows_N: np.ndarray) -> np.ndarray:
        """Where in the order windows stand."""
        places_N = np.searchsorted(self._sorted_N, windows_N).clip(max=len(self._sorted_N) - 1)
        assert (self._sorted_N[places_N] == windows_N).all(), "a window that is not visited"
        places: np.ndarray = self._places_N[places_N]
        return places

    def free_bytes(self) -> int:
        """Bytes that the file system has for the cache, including what it already takes."""
        place = self._directory
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free + sum(file.stat().st_size for file in self._directory.glob("*.npy"))

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Those that are not there, or are not as they were written: they will be replaced."""
        return [shard for shard in shards if self._problem(shard) is not None]

    def _problem(self, shard: int) -> str | None:
        path, shape = self._path(shard), (len(self._windows(shard)), self._data.context_length)
        if not path.exists():
            return "it is not there"
        problem = find_problem_of_shard(path, shape)
        if problem is not None:
            logger.warning("%s of the prefix cache will be computed again: %s", path, problem)
        return problem

    def remove(self, shards: Iterable[int]) -> None:
        """Free the space that shards take."""
        for shard in shards:
            self._path(shard).unlink(missing_ok=True)

    def num_windows(self, shards: Iterable[int]) -> int:
        return sum(len(self._windows(shard)) for shard in shards)

    def _path(self, shard: int) -> Path:
        return self._directory / f"shard-{shard:07d}.npy"

    def _windows(self, shard: int) -> np.ndarray:
        return self._order_N[shard * WINDOWS_PER_SHARD : (shard + 1) * WINDOWS_PER_SHARD]

    @torch.no_grad()
    def fill(
        self,
        shards: Iterable[int],
        model: GrowtxForCausalLM,
        num_frozen: int,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compute and write the shards that are still missing when their turn comes.

        The order is random in every process, so that several that fill the same cache share the work.

        Args:
            is_stopping: asked before every shard; once it is true, those that are written stay and no more are.

        Raises:
            StoreError: the disk is full; then nothing that this call wrote stays on it.
        """
        device = next(model.parameters()).device
        written: list[int] = []
        for shard in random.sample(todo := list(shards), len(todo)):
            if is_stopping():
                return
            if self._problem(shard) is None:
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
            replace_file(path, lambda file: _save(file, path, stored.numpy()))
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
        shards_N, rows_N = np.divmod(self._places(windows_N), WINDOWS_PER_SHARD)
        self.open(np.unique(shards_N).tolist())
        rows = [self._open[shard][row] for shard, row in zip(shards_N.tolist(), rows_N.tolist(), strict=True)]
        states_NTD = torch.from_numpy(np.stack(rows))
        return states_NTD.view(torch.bfloat16) if self.dtype == torch.bfloat16 else states_NTD

    def _map(self, shard: int) -> np.ndarray:
        try:
            if self._problem(shard) is None:
                mapped: np.ndarray = np.load(self._path(shard), mmap_mode="r")
                return mapped
        except (OSError, ValueError, EOFError):  # deleted, or replaced, since it was looked at
            pass
        raise StoreError(
            f"{self._path(shard)} of the prefix cache cannot be read",
            "Run the same command with --resume: it will be computed again",
        )


def _save(file: IO[bytes], path: Path, states_NTD: np.ndarray) -> None:
    """The states as numpy saves them, then the hash of the place and of these bytes, which numpy does not look at."""
    hashing = _HashingFile(file, _place(path))
    np.save(hashing, states_NTD)  # type: ignore[call-overload]
    file.write(hashing.digest.digest() + _MAGIC)


class _HashingFile:
    """Hashes what passes on its way to a file."""

    def __init__(self, file: IO[bytes], place: bytes) -> None:
        self._file, self.digest = file, hashlib.sha256(place)

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def find_problem_of_shard(path: Path, shape_NT: tuple[int, int] | None = None, *, force: bool = False) -> str | None:
    """What is wrong with a shard; None if it is as it was written, in this very place.

    Args:
        shape_NT: windows that it should have at least, and their positions; None: whatever it has.
        force: read all of it, even if this node has done so before.
    """
    try:
        with path.open("rb") as file:
            file.seek(-_NUM_TRAILER, os.SEEK_END)
            sha256, magic = file.read(_NUM_SHA256), file.read()
        if magic != _MAGIC:
            return "it was cut off, or an earlier version wrote it"
        if shape_NT is not None:
            num_windows, length = np.load(path, mmap_mode="r").shape[:2]
            if num_windows < shape_NT[0] or length != shape_NT[1]:  # more of them are those that are visited next
                return "it holds other windows"
        return check_once(path, sha256.hex(), lambda: _content_problem(path, sha256), force=force)
    except (OSError, ValueError, EOFError) as error:
        return " ".join(str(error).split())[:100] or "it cannot be read"


def _content_problem(path: Path, sha256: bytes) -> str | None:
    digest, left = hashlib.sha256(_place(path)), path.stat().st_size - _NUM_TRAILER
    with path.open("rb") as file:
        while left > 0 and (data := file.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
    return None if digest.digest() == sha256 else "its bytes are not those that were written"


def _place(path: Path) -> bytes:
    """What a shard is of: the names of its directories say the prefix, the data and the order, its own the place."""
    return f"{path.parent.parent.name}/{path.parent.name}/{path.name}\n".encode()


# The prefix cache filled by a Ray Data job on resources of its own, while the stage's workers wait for it.


END_JOB_SECONDS = 10.0  # that a job which is to end gets for the shards in work
BLOCKS_PER_WORKER = 4  # so that a slow worker does not keep the others waiting


@dataclass(frozen=True)
class PrefixWork:
    """What a process needs to fill a prefix cache."""

    directory: str
    order_N: np.ndarray
    packed_path: str
    local_bytes: int | None
    store_dir: str
    parent: Manifest
    num_frozen: int
    dtype: torch.dtype
    micro_batch: int

    def open_data(self) -> PackedData:
        return open_packed(self.packed_path, self.local_bytes)

    def cache(self, data: PackedData) -> PrefixCache:
        return PrefixCache(self.directory, data, self.order_N, dtype=self.dtype, micro_batch=self.micro_batch)


class ShardFiller:
    """One worker of the job: computes the shards it is given. After the first failed write, it writes no more."""

    def __init__(self, work: PrefixWork, config: PrefixJobConfig) -> None:
        torch.set_num_threads(max(1, int(config.cpus_per_worker)))
        self._work, self._cache = work, work.cache(work.open_data())
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


def fill_by_job(
    work: PrefixWork, shards: list[int], config: PrefixJobConfig, is_stopping: Callable[[], bool] = lambda: False
) -> StoreError | None:
    """Let a Ray Data job compute shards. Collective.

    Args:
        is_stopping: asked all the time; once it is true on any rank, the job ends after the shards in work.

    Returns:
        What kept the job from writing, if anything; then nothing that it wrote stays on the disk.
    """
    end = threading.Event()
    job = ThreadPoolExecutor(1).submit(run_job, work, shards, config, end) if rank() == 0 else None
    stopped_at: float | None = None
    while True:  # one collective for the whole time would time out
        is_running, is_stopped = any_rank([job is not None and not job.done(), is_stopping()])
        if is_stopped:
            end.set()
            stopped_at = stopped_at or time.monotonic()
        is_overdue = stopped_at is not None and time.monotonic() - stopped_at > END_JOB_SECONDS
        if not is_running or any_rank([rank() == 0 and is_overdue])[0]:
            break
        time.sleep(0.1)
    return on_rank_zero(lambda: job.result() if job is not None and job.done() else None)


def run_job(
    work: PrefixWork, shards: list[int], config: PrefixJobConfig, end: threading.Event | None = None
) -> StoreError | None:
    """The job itself, for one process that is connected to Ray.

    Args:
        end: set by another thread when the shards that are left are no longer wanted.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    num_blocks = min(len(shards), BLOCKS_PER_WORKER * config.num_workers)
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=num_blocks).map_batches(
        ShardFiller,
        fn_constructor_args=(work, config),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=config.num_workers),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
    )
    rows = []
    for row in dataset.iter_rows():
        rows.append(row)
        if end is not None and end.is_set():
            break
    problem = next((StoreError(row["problem"], row["remedy"]) for row in rows if row["problem"]), None)
    if problem is not None:
        work.cache(work.open_data()).remove(shards)
    return problem
