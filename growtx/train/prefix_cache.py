"""The frozen prefix's activations, computed once and read by every epoch, trial and sibling that shares the prefix.

A cache is a directory named by what decides its content (blobs of the prefix, data, dtype) and holds the states
that enter the first trained block in shards of consecutive windows. A shard is written beside its place and renamed
into it, so a crash or a second process at the same work leaves a complete shard or none.

Shapes: N windows, T positions, D hidden size.
"""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from growtx.config import fingerprint
from growtx.data.packing import PackedData
from growtx.exceptions import StoreError
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.store.manifest import Manifest
from growtx.store.storage import write_error

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
        """Room on the file system for the cache, what it takes already included."""
        place = self._directory
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free + sum(file.stat().st_size for file in self._directory.glob("*.npy"))

    def missing(self, shards: Iterable[int]) -> list[int]:
        return [shard for shard in shards if not self._path(shard).exists()]

    def remove(self, shards: Iterable[int]) -> None:
        """Give back the room that shards take."""
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

        The order is drawn anew in every process: several that fill the same cache share the work.

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
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.part")
        stored = states_NTD.view(torch.int16) if self.dtype == torch.bfloat16 else states_NTD
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.save(file, stored.numpy())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise write_error(str(path), error) from error

    def open(self, shards: Iterable[int]) -> None:
        """Map shards: they can be read from then on even if another run gives up and removes what it wrote of them.

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
                f"Delete {self._directory} and run the same command with --resume: it is made again",
            ) from error
        return mapped
