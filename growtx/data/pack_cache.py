"""The cache of packed data: entries that are complete or absent, local or on another filesystem.

An entry is a directory of files with an `index.json` that states every file's size. It is built in a scratch
directory and renamed into place. Where the cache lives on an object store, entries are built and memory-mapped in
a directory of the node and copied up and down, the index last, since object stores cannot rename.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from growtx.config import fingerprint, parse_json
from growtx.data.sources import SourceConfig, load_arguments, source_files
from growtx.exceptions import DataError, StoreError
from growtx.microworld import generator_fingerprint
from growtx.storage import is_local, open_filesystem, replace_file

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
        self._filesystem, self._path = open_filesystem(root.rstrip("/"))
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
            logger.warning("Packed data in %s is damaged (%s) and will be rebuilt", self.local / key, problem)
        directory = self._install(key, fill_and_index)
        if not self.is_local:
            self._upload(key, directory)
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
    except (StoreError, ValueError, KeyError, TypeError, AttributeError):
        return f"{INDEX} is not readable"
    return None


def read_index(directory: Path) -> dict[str, Any]:
    """The index of an entry."""
    index = parse_json((directory / INDEX).read_bytes(), str(directory / INDEX), "Delete it; it will be rebuilt")
    if not isinstance(index, dict):
        raise StoreError(f"{directory / INDEX} is damaged", "Delete it; it will be rebuilt")
    return index


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


# What a source's text is a function of, as a string: the content part of the key it is packed under.


def content_fingerprint(source: SourceConfig, memo: HashMemo) -> str:
    """Equal when the text that a source reads is equal.

    Local files count by their bytes, files elsewhere by what their filesystem knows of them (name, size, ETag),
    Hugging Face data sets by commit and data files, the microworld by its configuration and its code.
    """
    if source.microworld is not None:
        content = [source.microworld.fingerprint(), generator_fingerprint()]
    elif source.files is not None:
        content = [memo.sha256(path) for path in source_files(source)]
    else:
        content = _hub_content(source)
    reading = source.model_dump(
        mode="json", include={"text_column", "where", "document_bytes", "max_documents", "max_bytes"}
    )
    return fingerprint({"content": content, "reading": reading})


def _hub_content(source: SourceConfig) -> list[str]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(**load_arguments(source))
    except Exception as error:  # whatever hub, network or file system raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        problem = f"The data set {source.hf} cannot be loaded ({reason})"
        raise DataError(problem, "Check name, config and network") from error
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
