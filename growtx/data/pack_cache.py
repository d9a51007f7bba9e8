"""The cache of packed data: entries that are complete or absent, local or on another filesystem.

An entry is a directory of files with an `index.json` that states every file's size. It is built in a scratch
directory and renamed into place. Where the cache lives on an object store, entries are built and memory-mapped in
a directory of the node and copied up and down, the index last, since object stores cannot rename.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from growtx.data.filesystems import is_local, locate
from growtx.exceptions import DataError

logger = logging.getLogger(__name__)

INDEX = "index.json"
ABANDONED_AFTER_SECONDS = 24 * 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class PackCache:
    """Entries and small JSON documents under `root`, a path or an fsspec URL.

    Attributes:
        local: directory of this node where entries are built and mapped; `root` itself if that is local.
    """

    def __init__(self, root: str) -> None:
        self._filesystem, self._path = locate(root.rstrip("/"))
        self.is_local = is_local(self._filesystem)
        self.local = Path(self._path) if self.is_local else _node_directory() / fsspec.utils.tokenize(root.rstrip("/"))
        self.root = str(self.local) if self.is_local else root.rstrip("/")  # absolute: workers run elsewhere

    def entry(self, key: str) -> Path | None:
        """Local directory of a complete entry, fetched first if it lies elsewhere; None if there is none."""
        directory = self.local / key
        if damage(directory) is not None and not self.is_local and self._remote_has(key):
            self._install(key, lambda scratch: self._download(key, scratch))
        return directory if damage(directory) is None else None

    def build(self, key: str, fill: Callable[[Path], dict[str, Any]]) -> Path:
        """Make an entry: `fill` writes files into a scratch directory and returns what the index says of them.

        Raises:
            DataError: the disk is full or not writable. Nothing half-written is left.
        """

        def fill_and_index(scratch: Path) -> None:
            (scratch / INDEX).write_text(json.dumps(fill(scratch), indent=1), encoding="utf-8")

        if (self.local / key).exists():
            problem = damage(self.local / key)
            logger.warning("Packed data in %s is damaged (%s) and is made again", self.local / key, problem)
        directory = self._install(key, fill_and_index)
        if not self.is_local:
            self._upload(key, directory)
        return directory

    def write_json(self, name: str, value: Any) -> str:
        """Write a small JSON document atomically; return its path or URL."""
        text = json.dumps(value, indent=1)
        with self._writing():
            save_text(self.local / name, text)
            if not self.is_local:
                self._filesystem.makedirs(self._path, exist_ok=True)
                self._filesystem.pipe_file(f"{self._path}/{name}", text.encode())
        return f"{self.root}/{name}"

    def _install(self, key: str, fill: Callable[[Path], None]) -> Path:
        target, scratch = self.local / key, self.local / f".making-{key[:16]}-{uuid.uuid4().hex[:8]}"
        try:
            with self._writing():
                self._sweep()
                scratch.mkdir()
                fill(scratch)
                _move_into_place(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise DataError(
                    f"No space is left for packed data in {self.local}", "Free space there or set another cache_dir"
                ) from error
            reason = error.strerror or str(error) or type(error).__name__
            raise DataError(
                f"Packed data cannot be written to {self.root} ({reason})", "Set another cache_dir"
            ) from error

    def _remote_has(self, key: str) -> bool:
        return bool(self._filesystem.exists(f"{self._path}/{key}/{INDEX}"))

    def _upload(self, key: str, directory: Path) -> None:
        with self._writing():
            self._filesystem.makedirs(f"{self._path}/{key}", exist_ok=True)
            names = [path.name for path in directory.iterdir() if path.name != INDEX]
            for name in [*sorted(names), INDEX]:  # whoever sees the index sees everything
                self._filesystem.put_file(str(directory / name), f"{self._path}/{key}/{name}")

    def _download(self, key: str, scratch: Path) -> None:
        for path in self._filesystem.ls(f"{self._path}/{key}", detail=False):
            self._filesystem.get_file(path, str(scratch / Path(path).name))

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        for scratch in self.local.glob(".making-*"):
            with suppress(FileNotFoundError):  # its owner is just finishing
                newest = max(path.stat().st_mtime for path in [scratch, *scratch.glob("*")])
                if time.time() - newest > ABANDONED_AFTER_SECONDS:
                    shutil.rmtree(scratch, ignore_errors=True)


def damage(directory: Path) -> str | None:
    """What is wrong with an entry by its index and file sizes; None if it looks complete."""
    try:
        for entry in read_index(directory)["files"].values():
            size = (directory / entry["file"]).stat().st_size
            if size != entry["size_bytes"]:
                return f"{entry['file']} has {size} bytes instead of {entry['size_bytes']}"
    except OSError as error:
        return f"{Path(error.filename or directory).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{INDEX} is not readable"
    return None


def read_index(directory: Path) -> dict[str, Any]:
    """The index of an entry."""
    index: dict[str, Any] = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    return index


def save_text(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _move_into_place(scratch: Path, target: Path) -> None:
    """Rename; whoever comes second discards its work, unless what is in the way is damaged."""
    while True:
        try:
            scratch.rename(target)
            return
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        if damage(target) is None:
            return
        shutil.rmtree(target, ignore_errors=True)  # open memory maps of it stay valid


def _node_directory() -> Path:
    configured = os.environ.get("GROWTX_NODE_CACHE")
    return Path(configured) if configured else Path(tempfile.gettempdir()) / f"growtx-{os.getuid()}"
