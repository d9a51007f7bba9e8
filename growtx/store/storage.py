"""One directory on any fsspec file system, with writes that happen wholly or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from growtx.exceptions import StoreError

PART_SUFFIX = ".part"  # of a file that is being written


class Storage:
    """Bytes under a root such as `runs/demo`, `/mnt/nfs/runs/demo`, `s3://bucket/runs/demo`.

    Paths are relative to the root, with `/` between parts.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root).rstrip("/")
        try:
            self._fs, self._base = fsspec.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"{self.root}: this kind of storage cannot be opened ({error})",
                "Install its fsspec package (for example s3fs or gcsfs), or give a local path",
            ) from error

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    def path(self, relative: str) -> str:
        """The full address of a relative path, for messages and for other libraries."""
        base = self._base if self.is_local else self.root
        return f"{base}/{relative}" if relative else str(base)

    def child(self, relative: str) -> Storage:
        return Storage(self.path(relative))

    def exists(self, relative: str = "") -> bool:
        return bool(self._fs.exists(self._at(relative)))

    def size_bytes(self, relative: str) -> int:
        return int(self._fs.size(self._at(relative)))

    def read_bytes(self, relative: str) -> bytes:
        try:
            with self._fs.open(self._at(relative), "rb") as file:
                return bytes(file.read())
        except FileNotFoundError as error:
            raise StoreError(f"{self.path(relative)}: there is no such file", "Check the path") from error
        except OSError as error:
            raise StoreError(f"{self.path(relative)} cannot be read: {error.strerror or error}") from error

    def read_tail(self, relative: str, num_bytes: int = 64 * 1024) -> str:
        """The end of a text file, which may begin inside a line; empty when there is no such file."""
        if not self.exists(relative):
            return ""
        return bytes(self._fs.tail(self._at(relative), num_bytes)).decode("utf-8", errors="ignore")

    def modified(self, relative: str) -> datetime | None:
        """When a file was last written (UTC); None when there is no such file."""
        if not self.exists(relative):
            return None
        time: datetime = self._fs.modified(self._at(relative))
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def read_text(self, relative: str) -> str:
        try:
            return self.read_bytes(relative).decode("utf-8")
        except UnicodeDecodeError as error:
            raise StoreError(f"{self.path(relative)} is damaged: it is not UTF-8 text") from error

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write atomically: readers see the old file or the whole new one, also after a crash."""
        try:
            if self.is_local:
                _replace_local(Path(self._at(relative)), data)
            else:
                self._fs.pipe_file(self._at(relative), data)  # object stores make an upload visible when it is complete
        except OSError as error:
            raise write_error(self.path(relative), error) from error

    def write_text(self, relative: str, text: str) -> None:
        self.write_bytes(relative, text.encode("utf-8"))

    def append_text(self, relative: str, text: str) -> None:
        """Append to a local file; object stores cannot, so there the file is written anew."""
        try:
            if self.is_local:
                path = Path(self._at(relative))
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
            else:
                self.write_text(relative, (self.read_text(relative) if self.exists(relative) else "") + text)
        except OSError as error:
            raise write_error(self.path(relative), error) from error

    def remove(self, relative: str) -> None:
        self._fs.rm(self._at(relative), recursive=True)

    def list_files(self, relative: str = "", suffix: str = "") -> list[str]:
        """Relative paths of all files below `relative`, sorted."""
        if not self.exists(relative):
            return []
        found = self._fs.find(self._at(relative))
        return sorted(str(path)[len(str(self._base)) :].lstrip("/") for path in found if str(path).endswith(suffix))

    def list_names(self, relative: str = "") -> list[str]:
        """Names of the direct children of a directory, sorted."""
        if not self.exists(relative):
            return []
        entries = self._fs.ls(self._at(relative), detail=False, refresh=True)
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def upload(self, local_dir: str, relative: str) -> None:
        """Copy a local directory tree below `relative`."""
        for file in sorted(Path(local_dir).rglob("*")):
            if file.is_file():
                self.write_bytes(f"{relative}/{file.relative_to(local_dir).as_posix()}", file.read_bytes())

    def download(self, relative: str) -> str:
        """A local directory with the content of `relative` (itself when the storage is local)."""
        if self.is_local:
            return self._at(relative)
        target = tempfile.mkdtemp(prefix="growtx-")
        for path in self.list_files(relative):
            local = Path(target) / path[len(relative) :].lstrip("/")
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(self.read_bytes(path))
        return target

    def _at(self, relative: str) -> str:
        return f"{self._base}/{relative}" if relative else str(self._base)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.root,))


def _replace_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_error(path: str, error: OSError) -> StoreError:
    """The sentence for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(
            f"{path} cannot be written: the disk is full",
            "Free some space and run the same command with --resume; finished stages are kept",
        )
    return StoreError(f"{path} cannot be written: {error.strerror or error}", "Check the path and its permissions")
