"""One process at a time works on a run: a lock that the kernel releases when its holder dies, however it dies.

It reaches as far as file locks do: this machine's disks and most network file systems. Object stores have none, so
there nothing is held and nothing is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from growtx.compat.ray import submission_id
from growtx.exceptions import ConfigError
from growtx.fence import FENCE_FILE, Fence, take_over
from growtx.storage import Storage, told_as, write_error
from growtx.store.run_records import ENDED, RUN_FILE, read_status

LOCK_FILE = "lock"  # says who holds it, or held it last
_held: dict[str, int] = {}  # run directory, links resolved -> descriptor, kept open until this process ends


def acquire(storage: Storage) -> None:
    """Hold a run's lock until this process ends; holding it again is allowed.

    Raises:
        ConfigError: another process holds it.
        StoreError: the disk is full.
    """
    if not storage.is_local or _key(storage) in _held:
        return
    storage.append_text(LOCK_FILE, "")  # creates the directory, or raises a readable error
    descriptor = os.open(storage.path(LOCK_FILE), os.O_RDWR)
    for _ in range(5):  # `growtx runs` takes it briefly to check
        if locked := _try_lock(descriptor, fcntl.LOCK_EX):
            break
        time.sleep(0.1)
    if not locked:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise ConfigError(
            f"--run-dir {storage.root} is in use by {holder or 'another process'}",
            "Wait until it ends, stop it (`ray job stop ID` for a job), or name another directory",
        )
    job = submission_id()
    holder = f"{f'job {job}, ' if job else ''}process {os.getpid()} on {socket.gethostname()}"
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise write_error(storage.path(LOCK_FILE), error) from error
    _held[_key(storage)] = descriptor


_fences: dict[str, Fence] = {}


def fenced(storage: Storage) -> Storage:
    """The storage of a run whose lock this process holds; from now on, what others write there is refused.

    Asked again, this process keeps the fence that it has.
    """
    key = _key(storage)
    if key not in _fences or not _fences[key].is_current:
        with told_as(write_error, storage.path(FENCE_FILE)):
            _fences[key] = take_over(storage.path("") if storage.is_local else storage.root)
    return Storage(storage.root, fences=(_fences[key],))


@contextmanager
def held(storage: Storage) -> Iterator[None]:
    """Hold a run's lock for the `with` block, unless this process holds it anyway.

    Raises:
        ConfigError: another process holds it, or, where there are no locks, the run does not say that it has ended.
    """
    if not storage.is_local:
        _check_ended(storage)
    is_ours = not storage.is_local or not storage.exists() or _key(storage) in _held
    if not is_ours:
        acquire(storage)
    try:
        yield
    finally:
        if not is_ours:
            os.close(_held.pop(_key(storage)))


def _check_ended(storage: Storage) -> None:
    """Raises ConfigError unless the run has never begun or says that it has ended."""
    if storage.exists(RUN_FILE) and read_status(storage).state not in ENDED:
        raise ConfigError(
            f"{storage.root} may be in work, and object stores have no locks",
            "Wait until `growtx runs` says that it has ended",
        )


def _key(storage: Storage) -> str:
    """One for every spelling of a directory: a lock of our own under another name would refuse us."""
    return os.path.realpath(storage.path("")) if storage.is_local else storage.root


def is_locked(storage: Storage) -> bool | None:
    """Whether a process works on the run; None where only its own machine could tell."""
    if not storage.is_local or not storage.exists(LOCK_FILE):
        return None
    if _key(storage) in _held:
        return True
    if not storage.read_text(LOCK_FILE).endswith(f" on {socket.gethostname()}"):
        return None
    descriptor = os.open(storage.path(LOCK_FILE), os.O_RDONLY)
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # a file system without locks: nothing is refused
    return True
