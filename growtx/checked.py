"""Large local files that are proven once on every node: hashed when they are written, checked when first read.

A check is remembered by what the file system says of a file (device, inode, size, times of content and of inode), so
whatever writes to it, or puts another in its place, has it checked again. What rots on the disk under an unchanged
file is seen by `growtx verify` alone, which always reads everything.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import fsspec

_FORGOTTEN_AFTER_SECONDS = 30 * 24 * 3600.0


def node_directory() -> Path:
    """Where this user keeps on this node what other nodes must not see: GROWTX_NODE_CACHE, or below /tmp."""
    configured = os.environ.get("GROWTX_NODE_CACHE")
    return Path(configured) if configured else Path(tempfile.gettempdir()) / f"growtx-{os.getuid()}"


def node_copy_of(address: str) -> Path:
    """The directory of this node that stands for one elsewhere, such as `s3://bucket/cache`."""
    return node_directory() / str(fsspec.utils.tokenize(address.rstrip("/")))


def check_once(path: Path, content: str, find_problem: Callable[[], str | None], *, force: bool = False) -> str | None:
    """What is wrong with a file, asked once per node and version of the file; of several processes, one asks.

    Args:
        content: what the file should hold (a hash).
        find_problem: reads the file; None: nothing is wrong.
        force: ask again, whatever was found before.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    memo = node_directory() / "checked" / _identity(path, content)
    with _alone(memo):
        if not force and memo.exists():
            return None
        identity, problem = memo.name, find_problem()
        if problem is None and _identity(path, content) == identity:  # else it was replaced meanwhile
            with suppress(OSError):  # nothing can be remembered here: it is checked every time
                memo.touch()
        elif problem is not None:
            with suppress(OSError):
                memo.unlink()
        return problem


def _identity(path: Path, content: str) -> str:
    """The name of a version of a file."""
    seen = path.stat()
    version = [seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    return hashlib.sha256(json.dumps([os.fspath(path.absolute()), content, version]).encode()).hexdigest()


@contextmanager
def _alone(memo: Path) -> Iterator[None]:
    """One process of a node at a time; without a place for the lock, every process does the work itself."""
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        _sweep(memo.parent)
        lock = (memo.parent / f"lock-{memo.name[:2]}").open("w")
    except OSError:
        yield
        return
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def _sweep(directory: Path) -> None:
    """Forget old checks, once per process."""
    for memo in directory.iterdir():
        with suppress(OSError):
            if time.time() - memo.stat().st_mtime > _FORGOTTEN_AFTER_SECONDS:
                memo.unlink()
