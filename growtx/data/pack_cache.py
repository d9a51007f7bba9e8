"""The cache of packed data: entries that are complete or absent, local or on another filesystem.

An entry is a directory of files with an `index.json` that states every file's size and a hash of what it holds, which
is checked once on every node. An entry is built in a scratch directory and renamed into place when it is on the disk.
Where the cache lives on an object store, entries are built and memory-mapped in a directory of the node and copied up
and down, the index last, since object stores cannot rename.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from growtx.checked import node_copy_of, node_directory
from growtx.config import fingerprint, parse_json
from growtx.data.sources import Part, SourceConfig, hub_builder, source_files
from growtx.exceptions import DataError, StoreError
from growtx.microworld import generator_fingerprint
from growtx.storage import is_local, open_filesystem, replace_file, sync, sync_tree

logger = logging.getLogger(__name__)

INDEX = "index.json"
ABANDONED_AFTER_SECONDS = 24 * 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


FindProblem = Callable[[Path, bool], str | None]


class PackCache:
    """Entries and small JSON documents under `root`, a path or an fsspec URL.

    Args:
        find_problem: reads all of an entry and says what is wrong with it; `force`: also if that was asked before.
        local_bytes: how much of a root elsewhere is kept on this node at once; None: all that was asked for.

    Attributes:
        local: directory of this node where entries are built and mapped; `root` itself if that is local.
    """

    def __init__(self, root: str, find_problem: FindProblem | None = None, *, local_bytes: int | None = None) -> None:
        self._find_problem = find_problem
        self.local_bytes = local_bytes
        self._filesystem, self._path = open_filesystem(root.rstrip("/"))
        self.is_local = is_local(self._filesystem)
        self.local = Path(self._path) if self.is_local else node_copy_of(root)
        self.root = str(self.local) if self.is_local else root.rstrip("/")  # absolute: workers run elsewhere

    def entry(self, key: str, hashed: bool = True) -> Path | None:
        """Local directory of a complete entry, fetched first if it lies elsewhere; None if there is none.

        Args:
            hashed: whether all of it is read to see that it is what was written; its sizes are always compared.
        """
        directory = self.local / key
        if self.problem(directory, hashed=hashed) is None:
            self._touch(directory)
            return directory
        if self.is_local:
            return None
        with self._alone(key):  # of several processes of a node, one fetches
            if self.problem(directory, hashed=hashed) is None:
                return directory
            return self._fetch(key)

    def _fetch(self, key: str) -> Path | None:
        if not self._remote_has(key):
            return None
        try:
            directory = self._install(key, lambda scratch: self._download(key, scratch))
        except _DamagedEntry as error:
            logger.warning("Packed data in %s/%s is damaged (%s)", self.root, key, error)
            return None
        self._make_room(keep=key)
        return directory

    def index(self, key: str) -> dict[str, Any] | None:
        """What the index of a complete entry says, without fetching the entry; None if there is none.

        Where the entry lies on this machine, its sizes are compared.
        """
        directory = self.local / key
        if damage(directory) is None:
            return read_index(directory)
        if self.is_local or not self._remote_has(key):
            return None
        place = f"{self._path}/{key}"
        data = self._filesystem.cat_file(f"{place}/{INDEX}")
        try:
            index = parse_json(data, f"{self.root}/{key}/{INDEX}", "Delete it; it will be rebuilt")
            sizes = {entry["file"]: entry["size_bytes"] for entry in index["files"].values()}
            found = {name: self._filesystem.size(f"{place}/{name}") for name in sizes}
        except (StoreError, OSError, KeyError, TypeError, AttributeError):
            return None
        return index if found == sizes else None

    def problem(self, directory: Path, *, force: bool = False, hashed: bool = True) -> str | None:
        """What is wrong with an entry, by its sizes and by its content; None if it is intact."""
        problem = damage(directory)
        return self._find_problem(directory, force) if problem is None and hashed and self._find_problem else problem

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        path = node_directory() / "locks" / f"{self.local.name}-{key[:2]}"
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    def _touch(self, directory: Path) -> None:
        """What is used stays longest."""
        if self.local_bytes is not None and not self.is_local:
            with suppress(OSError):
                os.utime(directory)

    def _make_room(self, keep: str) -> None:
        """Remove the copies that were not used for longest; open maps of them stay valid."""
        if self.local_bytes is None or self.is_local:
            return
        used = []
        for directory in self.local.iterdir():
            with suppress(OSError):  # another process removes it
                if directory.is_dir() and not directory.name.startswith("."):
                    size = sum(file.stat().st_size for file in directory.iterdir())
                    used.append((directory.stat().st_mtime, size, directory))
        total = sum(size for _, size, _ in used)
        for _, size, directory in sorted(used):
            if total <= self.local_bytes:
                return
            if directory.name != keep:
                shutil.rmtree(directory, ignore_errors=True)
                total -= size

    def build(self, key: str, fill: Callable[[Path], dict[str, Any]]) -> Path:
        """Make an entry: `fill` writes files into a scratch directory and returns what the index says of them.

        Raises:
            DataError: the disk is full or not writable. Nothing half-written is left.
        """

        def fill_and_index(scratch: Path) -> None:
            (scratch / INDEX).write_text(json.dumps(fill(scratch), indent=1), encoding="utf-8")

        if (self.local / key).exists() and (problem := self.problem(self.local / key)) is not None:
            logger.warning("Packed data in %s is damaged (%s) and will be rebuilt", self.local / key, problem)
        directory = self._install(key, fill_and_index)
        if not self.is_local:
            self._upload(key, directory)
            self._make_room(keep=key)
        return directory

    def write_json(self, name: str, value: Any) -> str:
        """Write a small JSON document atomically; return its path or URL."""
        text = json.dumps(value, indent=1)
        with self._writing():
            replace_file(self.local / name, lambda file: file.write(text.encode()))
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
                sync_tree(scratch)
                self._move_into_place(scratch, target)
                sync(self.local)
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
                elsewhere = "set another cache_dir" if self.is_local else "let GROWTX_NODE_CACHE name a larger disk"
                raise DataError(
                    f"No space is left for packed data in {self.local}", f"Free space there or {elsewhere}"
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
            if self._remote_has(key):  # damaged: nobody may take the old index for that of the new files
                self._filesystem.rm(f"{self._path}/{key}/{INDEX}")
            names = [path.name for path in directory.iterdir() if path.name != INDEX]
            for name in [*sorted(names), INDEX]:  # whoever sees the index sees everything
                self._filesystem.put_file(str(directory / name), f"{self._path}/{key}/{name}")

    def _download(self, key: str, scratch: Path) -> None:
        for path in self._filesystem.ls(f"{self._path}/{key}", detail=False):
            self._filesystem.get_file(path, str(scratch / Path(path).name))
        if (problem := self.problem(scratch, force=True)) is not None:
            raise _DamagedEntry(problem)

    def _move_into_place(self, scratch: Path, target: Path) -> None:
        """Rename; whoever comes second discards its work, unless what is in the way is damaged."""
        while True:
            try:
                scratch.rename(target)
                return
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
            if self.problem(target, force=True) is None:
                return
            shutil.rmtree(target, ignore_errors=True)  # open memory maps of it stay valid

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        for scratch in self.local.glob(".making-*"):
            with suppress(FileNotFoundError):  # its owner is just finishing
                newest = max(path.stat().st_mtime for path in [scratch, *scratch.glob("*")])
                if time.time() - newest > ABANDONED_AFTER_SECONDS:
                    shutil.rmtree(scratch, ignore_errors=True)


class _DamagedEntry(Exception):
    """What was fetched is not what it should be."""


def damage(directory: Path) -> str | None:
    """What is wrong with an entry by its index and file sizes; None if it looks complete."""
    try:
        for entry in read_index(directory)["files"].values():
            size = (directory / entry["file"]).stat().st_size
            if size != entry["size_bytes"]:
                return f"{entry['file']} has {size} bytes instead of {entry['size_bytes']}"
    except OSError as error:
        return f"{Path(error.filename or directory).name}: {error.strerror}"
    except (StoreError, ValueError, KeyError, TypeError, AttributeError):
        return f"{INDEX} is not readable"
    return None


def read_index(directory: Path) -> dict[str, Any]:
    """The index of an entry."""
    index = parse_json((directory / INDEX).read_bytes(), str(directory / INDEX), "Delete it; it will be rebuilt")
    if not isinstance(index, dict):
        raise StoreError(f"{directory / INDEX} is damaged", "Delete it; it will be rebuilt")
    return index


# What a source's text is a function of, as a string: the content part of the key it is packed under.


def content_fingerprint(source: SourceConfig, memo: HashMemo, part: Part | None = None) -> str:
    """Equal when the text that a source, or one part of it, reads is equal.

    Local files count by their bytes, files elsewhere by what their filesystem knows of them (name, size, ETag),
    Hugging Face data sets by commit and data files, the microworld by its configuration and its code.
    """
    reading = source.model_dump(
        mode="json", include={"text_column", "where", "document_bytes", "max_documents", "max_bytes"}
    )
    if part is not None and part.files is not None:
        ranges = [[memo.sha256(file.path), file.index, file.count] for file in part.files]
        return fingerprint({"ranges": ranges, "reading": reading, "shard_bytes": part.shard_bytes})
    if source.microworld is not None:
        content = [source.microworld.fingerprint(), generator_fingerprint()]
    elif source.files is not None:
        content = [memo.sha256(path) for path in source_files(source)]
    else:
        content = _hub_content(source)
    if part is None or part.is_small:
        return fingerprint({"content": content, "reading": reading})
    return fingerprint({"content": content, "reading": reading, "shard_bytes": part.shard_bytes})


def _hub_content(source: SourceConfig) -> list[str]:
    builder = hub_builder(source)
    # hash: the commit on the hub or the loader's code; config_id: configuration, data files and their dates or ETags
    return [builder.hash or "", builder.config_id, source.split]


_SHA256 = re.compile(r"[0-9a-f]{64}")


class HashMemo:
    """sha256 of local files, remembered by path, size and times, so that large corpora are hashed once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            known = parse_json(path.read_bytes(), str(path), "")
        except (OSError, StoreError):  # absent, or damaged: it only saves time
            known = {}
        known = known if isinstance(known, dict) else {}
        self._known: dict[str, str] = {key: value for key, value in known.items() if _SHA256.fullmatch(str(value))}

    def sha256(self, path: str) -> str:
        """Identity of a file's content: "sha256:..." for local files, "ukey:..." for others."""
        filesystem, stripped = open_filesystem(path)
        try:
            state = str(filesystem.ukey(stripped))
            if not is_local(filesystem):
                return f"ukey:{state}"
            if state not in self._known:
                with Path(stripped).open("rb") as handle:
                    self._known[state] = hashlib.file_digest(handle, "sha256").hexdigest()
                self._save()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise DataError(f"{path} cannot be read ({reason})", "Check the file and its permissions") from error
        return f"sha256:{self._known[state]}"

    def _save(self) -> None:
        with suppress(OSError):  # a full disk is reported by whoever needs the space
            replace_file(self._path, lambda file: file.write(json.dumps(self._known).encode()), durable=False)
