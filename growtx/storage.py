"""One directory on any fsspec file system, with writes that happen completely or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec

from growtx.compat.ray import submission_id
from growtx.exceptions import ConfigError, StoreError, reason_of
from growtx.fence import FENCE_FILE, Fence

PART_SUFFIX = ".part"  # of a file that is being written


class Storage:
    """Bytes under a root such as `runs/demo`, `/mnt/nfs/runs/demo`, `s3://bucket/runs/demo`.

    Paths are relative to the root, with `/` between parts.

    Args:
        fences: what every write asks first, in a run that another process may take over; reading asks nothing.
    """

    def __init__(self, root: str | os.PathLike[str], *, fences: tuple[Fence, ...] = ()) -> None:
        self.fences = fences
        self.root = os.fspath(root).rstrip("/")
        try:
            # What other processes write meanwhile must be seen: no listing is remembered.
            self._fs, self._base = open_filesystem(self.root, use_listings_cache=False)
        except ConfigError as error:
            raise StoreError(error.problem, error.remedy) from error

    @property
    def is_local(self) -> bool:
        return is_local(self._fs)

    def path(self, relative: str) -> str:
        """The full address of a relative path, for messages and for other libraries."""
        base = self._base if self.is_local else self.root
        return f"{base}/{relative}" if relative else str(base)

    def child(self, relative: str) -> Storage:
        return Storage(self.path(relative), fences=self.fences)

    @contextmanager
    def _writing(self, relative: str) -> Iterator[None]:
        """Nobody takes the run over meanwhile; what the file system says against a write becomes a sentence.

        Raises:
            FencedError: somebody has taken it over.
        """
        with ExitStack() as stack:
            for fence in self.fences:
                with self._reading(FENCE_FILE):
                    stack.enter_context(fence.permitted())
            with told_as(write_error, self.path(relative)):
                yield

    def _reading(self, relative: str) -> AbstractContextManager[None]:
        return told_as(read_error, self.path(relative))

    def exists(self, relative: str = "") -> bool:
        with self._reading(relative):
            return bool(self._fs.exists(self._at(relative)))

    def size_bytes(self, relative: str) -> int:
        with self._reading(relative):
            return int(self._fs.size(self._at(relative)))

    def read_bytes(self, relative: str) -> bytes:
        with self._reading(relative), self._fs.open(self._at(relative), "rb") as file:
            return bytes(file.read())

    def read_tail(self, relative: str, num_bytes: int = 64 * 1024) -> str:
        """The end of a text file, which may begin inside a line; empty when there is no such file."""
        if not self.exists(relative):
            return ""
        with self._reading(relative):
            return bytes(self._fs.tail(self._at(relative), num_bytes)).decode("utf-8", errors="ignore")

    def modified(self, relative: str) -> datetime | None:
        """When a file was last written (UTC); None when there is no such file."""
        if not self.exists(relative):
            return None
        with self._reading(relative):
            time: datetime = self._fs.modified(self._at(relative))
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def read_text(self, relative: str) -> str:
        try:
            return self.read_bytes(relative).decode("utf-8")
        except UnicodeDecodeError as error:
            raise StoreError(
                f"{self.path(relative)} is damaged: it is not UTF-8 text", "Restore it from a copy"
            ) from error

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write atomically: readers see the old file or the whole new one, also after a crash."""
        with self._writing(relative):
            if self.is_local:
                replace_file(Path(self._at(relative)), lambda file: file.write(data))
            else:
                self._fs.pipe_file(self._at(relative), data)  # object stores make an upload visible when it is complete

    def write_file(self, relative: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write what is too large to be held twice in memory: `write` gets the open file. Atomic like `write_bytes`."""
        unfinished = f"{self._at(relative)}.{uuid.uuid4().hex}{PART_SUFFIX}"
        with self._writing(relative):
            if self.is_local:
                replace_file(Path(self._at(relative)), write)
                return
            with self._fs.open(unfinished, "wb") as file:
                write(file)
            self._fs.mv(unfinished, self._at(relative))

    def write_text(self, relative: str, text: str) -> None:
        self.write_bytes(relative, text.encode("utf-8"))

    def append_text(self, relative: str, text: str) -> None:
        """Append to a local file; object stores cannot, so there the file is written anew."""
        with self._writing(relative):
            if self.is_local:
                path = Path(self._at(relative))
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
            else:
                self.write_text(relative, (self.read_text(relative) if self.exists(relative) else "") + text)

    def sync(self, relative: str) -> None:
        """Wait until what was appended to a local file is on the disk; object stores never say so before."""
        if self.is_local:
            with self._writing(relative):
                sync(Path(self._at(relative)))

    def touch(self, relative: str) -> None:
        """Make a local file young; object stores cannot, and a file of somebody else stays as it is."""
        if self.is_local:
            with suppress(OSError):
                os.utime(self._at(relative))

    def remove(self, relative: str) -> None:
        with self._writing(relative):
            self._fs.rm(self._at(relative), recursive=True)

    def list_files(self, relative: str = "", suffix: str = "") -> list[str]:
        """Relative paths of all files below `relative`, sorted."""
        if not self.exists(relative):
            return []
        with self._reading(relative):
            found = self._fs.find(self._at(relative))
        return sorted(str(path)[len(str(self._base)) :].lstrip("/") for path in found if str(path).endswith(suffix))

    def list_names(self, relative: str = "") -> list[str]:
        """Names of the direct children of a directory, sorted."""
        if not self.exists(relative):
            return []
        with self._reading(relative):
            entries = self._fs.ls(self._at(relative), detail=False, refresh=True)
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def replace_directory(self, local_dir: str, relative: str, *, last: str) -> None:
        """Replace a directory by a local one: readers see the old or the new one, never some files of each.

        Args:
            last: the file without which readers take the directory for none. On object stores, which cannot rename, it
                goes first and comes last.
        """
        if not self.is_local:
            for file in sorted(self.list_files(relative), key=lambda file: file != f"{relative}/{last}"):
                self.remove(file)
            for path in sorted(Path(local_dir).rglob("*"), key=lambda path: (path.name == last, path)):
                if path.is_file():
                    self.write_bytes(f"{relative}/{path.relative_to(local_dir).as_posix()}", path.read_bytes())
            return
        with self._writing(relative):
            _replace_directory(Path(local_dir), Path(self._at(relative)))

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
        return (partial(Storage, self.root, fences=self.fences), ())


def replace_file(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = True) -> None:
    """Write a local file atomically: readers see the old content or all of the new, also after a crash.

    Args:
        write: called with the open file.
        durable: wait until the content is on the disk; False where it can be made again, and is checked when read.

    Raises:
        OSError: of the file system; nothing half-written is left.
    """
    made = [parent.parent for parent in path.parents if not parent.exists()]  # their names are on no disk yet
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~current_umask())
        Path(temporary).replace(path)
        if durable:
            for directory in (path.parent, *made):
                sync(directory)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk; some network file systems cannot say."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Wait until a directory and everything in it is on the disk."""
    for path in (*directory.rglob("*"), directory):
        sync(path)


def current_umask() -> int:
    """The permissions that new files of this process shall not have."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration):  # no Linux: the only way to ask is to set it
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def _replace_directory(source: Path, target: Path) -> None:
    """Two renames: a crash between them leaves no directory, and who finds none makes it again."""
    for leftover in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    new, old = (target.with_name(f".{target.name}-{kind}-{uuid.uuid4().hex[:8]}") for kind in ("new", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, new)
        new.chmod(0o777 & ~current_umask())  # a temporary directory is its owner's alone
        sync_tree(new)
        if target.exists():
            target.rename(old)
        new.rename(target)
        sync(target.parent)
    finally:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def write_error(path: str, error: Exception) -> StoreError:
    """The sentence for a failed write."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(
            f"{path} cannot be written: the disk is full",
            "Free some space and run the same command with --resume; finished stages are kept",
        )
    return StoreError(
        f"{path} cannot be written: {_reason(error)}", _remedy(path, "Check the path and its permissions")
    )


def read_error(path: str, error: Exception) -> StoreError:
    """The sentence for a failed read."""
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{path}: there is no such file", "Check the path")
    return StoreError(f"{path} cannot be read: {_reason(error)}", _remedy(path, CHECK))


@contextmanager
def told_as(sentence: Callable[[str, Exception], StoreError], path: str) -> Iterator[None]:
    """What a file system or the client of an object store says, whose errors have no common kind, becomes a sentence.

    Args:
        sentence: `read_error` or `write_error`.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS):
            raise
        raise sentence(path, error) from error


def _reason(error: Exception) -> str:
    said = reason_of(error)
    return said if isinstance(error, OSError) else f"{type(error).__name__}: {said}"


def _remedy(path: str, local: str) -> str:
    if "://" not in path:
        return local
    return "Check the address, the network, and the credentials in the environment of this process and of all workers"


# Paths and URLs alike: one way to the filesystem that something lies on.


CHECK = "Check the disk, the network and the permissions"
_CLIENTS = {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "s3fs", "urllib3"}
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def open_filesystem(path: str, **options: Any) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path on it (absolute for local ones).

    Args:
        options: of the filesystem.

    Raises:
        ConfigError: a URL scheme that is unknown or whose package is not installed.
    """
    try:
        filesystem, stripped = fsspec.core.url_to_fs(path, **options)
    except (ImportError, ValueError) as error:
        scheme = path.partition("://")[0]
        reason = " ".join(str(error).split())[:150]
        extra = f"run pip install {_PACKAGES[scheme]}" if scheme in _PACKAGES else "for example s3fs or gcsfs"
        remedy = f"Install its fsspec package ({extra}), or give a local path"
        raise ConfigError(f"{path} cannot be reached ({reason})", remedy) from error
    return filesystem, str(stripped)


def is_local(filesystem: Any) -> bool:
    """Whether files can be memory-mapped where they are."""
    protocols = filesystem.protocol
    return "file" in ((protocols,) if isinstance(protocols, str) else protocols)


# Where runs are stored, which the environment alone decides.


STORAGE_VARIABLE = "GROWTX_STORAGE"
HOME_DIR = "growtx"  # in the home directory: where a job keeps its runs if no storage is set


def root() -> str:
    """What relative paths of runs start from: `GROWTX_STORAGE`, which clusters set, or the working directory.

    The working directory of a Ray job is a copy that Ray deletes with the job: there it is `~/growtx` instead.
    """
    if storage := os.environ.get(STORAGE_VARIABLE):
        return storage.rstrip("/")
    return str(Path.cwd() if submission_id() is None else Path.home() / HOME_DIR)


def resolve_address(path: str) -> str:
    """Resolve the path of a run, of a directory of runs or of a model, as given to a command, to its full address."""
    if "://" in path:
        return path
    if path == "~" or path.startswith("~/"):  # in a configuration file, or after `--run-dir=`, no shell expands it
        return str(Path(path).expanduser())
    if Path(path).is_absolute():
        return path
    start = root()
    return f"{start}/{PurePosixPath(path)}" if "://" in start else str(Path(start, path))
