"""Who may write into a run: the processes of its newest driver, and no others.

When a driver dies, its lock is free at once, while its workers live on for seconds. So whoever takes a run over counts
up the number in its file `fence`, and every write of a worker asks whether the number is still the one that its driver
had. Local files are asked under a shared lock which the one that counts waits for: once it has counted, nothing of the
old workers can follow. Object stores have no locks; there a write that has just asked may still come.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fsspec

from growtx.exceptions import ConfigError, FencedError

FENCE_FILE = "fence"
PATIENCE_SECONDS = 30.0  # for writes that are under way, of which the longest is that of a checkpoint
_NUM_BYTES = 21  # the same for every number, because it is written in place: a lock belongs to one file


@dataclass(frozen=True)
class Fence:
    """The right to write into a run directory, until somebody takes the run over.

    Attributes:
        root: of the run; an absolute path, or a URL.
        epoch: how often the run was taken over before and with this.
    """

    root: str
    epoch: int

    @contextmanager
    def permitted(self) -> Iterator[None]:
        """Nobody takes the run over during the `with` block.

        Raises:
            FencedError: somebody has done so before, or the run is gone.
        """
        try:
            descriptor = None if "://" in self.root else os.open(f"{self.root}/{FENCE_FILE}", os.O_RDONLY)
        except FileNotFoundError as error:
            raise self._error() from error
        try:
            if descriptor is not None:
                _lock(descriptor, fcntl.LOCK_SH)
            if _read(self.root, descriptor) != self.epoch:
                raise self._error()
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    @property
    def is_current(self) -> bool:
        try:
            with self.permitted():
                return True
        except FencedError:
            return False

    def _error(self) -> FencedError:
        return FencedError(f"another process has taken over {self.root}", "Nothing to do: this one ends")


def take_over(root: str) -> Fence:
    """Count up: from now on only who has the new fence can write. Only the holder of the run's lock may do so.

    Raises:
        ConfigError: a worker of the last driver is writing and does not end.
    """
    if "://" in root:
        epoch = _read(root, None) + 1
        with fsspec.open(f"{root}/{FENCE_FILE}", "wb") as file:
            file.write(_text(epoch))
        return Fence(root, epoch)
    descriptor = os.open(f"{root}/{FENCE_FILE}", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for_writers(root, descriptor)
        epoch = _read(root, descriptor) + 1
        os.pwrite(descriptor, _text(epoch), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Fence(root, epoch)


def _wait_for_writers(root: str, descriptor: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--run-dir {root} is still being written to by a worker of the process that had it before",
                "End that worker, or wait until it has ended",
            )
        time.sleep(0.05)


def _lock(descriptor: int, kind: int) -> bool:
    """Whether the lock is held now; on a file system without locks nobody is waited for."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _read(root: str, descriptor: int | None) -> int:
    """The number; 0 where there is none that could be anybody's."""
    try:
        if descriptor is not None:
            return int(os.pread(descriptor, _NUM_BYTES, 0))
        with fsspec.open(f"{root}/{FENCE_FILE}", "rb") as file:
            return int(file.read(_NUM_BYTES))
    except (FileNotFoundError, ValueError):
        return 0


def _text(epoch: int) -> bytes:
    return f"{epoch:0{_NUM_BYTES - 1}d}\n".encode()
