"""Files of a run: whole or not at all, on local disks and object stores alike."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from growtx.exceptions import StoreError
from growtx.storage import Storage
from tests.small_disk import small_disk


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(request.getfixturevalue("object_store").bucket() + "/run")
    return Storage(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4()}/run")


def test_what_is_written_is_read_back(storage: Storage) -> None:
    storage.write_bytes("a/b.bin", b"\x00\xff")
    storage.write_text("a/c.txt", "слово")
    assert storage.read_bytes("a/b.bin") == b"\x00\xff" and storage.read_text("a/c.txt") == "слово"
    assert storage.size_bytes("a/b.bin") == 2
    assert storage.exists() and storage.exists("a/b.bin") and not storage.exists("a/d")


def test_writing_again_replaces_the_file(storage: Storage) -> None:
    storage.write_text("a.txt", "a longer first version")
    storage.write_text("a.txt", "second")
    assert storage.read_text("a.txt") == "second" and storage.list_files() == ["a.txt"]


def test_lines_can_be_appended_and_the_end_of_a_file_read(storage: Storage) -> None:
    for number in range(5):
        storage.append_text("log/rows.txt", f"{number}\n")
    assert storage.read_text("log/rows.txt") == "0\n1\n2\n3\n4\n"
    assert storage.read_tail("log/rows.txt", num_bytes=4) == "3\n4\n"
    assert storage.read_tail("nothing") == ""


def test_files_and_names_are_listed_relative_to_the_root_and_sorted(storage: Storage) -> None:
    for name in ("b/2.json", "b/10.json", "a.txt", "b/deep/3.txt"):
        storage.write_text(name, "")
    assert storage.list_files() == ["a.txt", "b/10.json", "b/2.json", "b/deep/3.txt"]
    assert storage.list_files("b", suffix=".json") == ["b/10.json", "b/2.json"]
    assert storage.list_names("b") == ["10.json", "2.json", "deep"]
    assert storage.list_files("nothing") == storage.list_names("nothing") == []


def test_a_directory_is_downloaded_with_its_tree(storage: Storage) -> None:
    storage.write_text("model/a.txt", "a")
    storage.write_text("model/deep/b.txt", "b")
    local = Path(storage.download("model"))
    assert {str(path.relative_to(local)) for path in local.rglob("*.txt")} == {"a.txt", "deep/b.txt"}
    assert (local / "deep/b.txt").read_text() == "b"


def test_a_child_and_a_copy_in_another_process_see_the_same_files(storage: Storage) -> None:
    storage.write_text("a/b.txt", "x")
    assert storage.child("a").read_text("b.txt") == "x"
    assert pickle.loads(pickle.dumps(storage)).read_text("a/b.txt") == "x"


def test_a_removed_directory_is_gone(storage: Storage) -> None:
    storage.write_text("a/b.txt", "x")
    storage.remove("a")
    assert not storage.exists("a/b.txt")


def test_a_missing_file_is_a_sentence_that_names_it(storage: Storage) -> None:
    with pytest.raises(StoreError, match=r"run/a\.txt: there is no such file\. Check the path\.") as caught:
        storage.read_bytes("a.txt")
    assert "Traceback" not in str(caught.value)


def test_bytes_that_are_no_text_are_a_damaged_file(storage: Storage) -> None:
    storage.write_bytes("a.txt", b"\xff\xfe")
    with pytest.raises(StoreError, match="damaged: it is not UTF-8"):
        storage.read_text("a.txt")


def test_a_directory_in_place_of_a_file_is_a_sentence(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        storage.read_bytes("a.txt")
    with pytest.raises(StoreError, match="cannot be written"):
        storage.write_text("a.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_in_place_of_a_directory_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("x")
    with pytest.raises(StoreError, match=r"blobs/ab/c cannot be written: .*Check the path and its permissions"):
        Storage(str(tmp_path)).write_text("blobs/ab/c", "x")


@pytest.mark.parametrize("root", ["nosuchprotocol://bucket/run"])
def test_a_file_system_without_its_package_is_a_sentence(root: str) -> None:
    with pytest.raises(StoreError, match="Install its fsspec package"):
        Storage(root)


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """A file that takes a few bytes before the disk is full."""

    def __init__(self, handle: int, _mode: str) -> None:
        self.handle = handle

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def write(self, data: bytes) -> None:
        os.write(self.handle, data[:3])
        full()


MOMENTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "making the directory": lambda patch: patch.setattr(Path, "mkdir", full),
    "creating the file": lambda patch: patch.setattr(tempfile, "mkstemp", full),
    "writing": lambda patch: patch.setattr(os, "fdopen", FullFile),
    "syncing": lambda patch: patch.setattr(os, "fsync", full),
    "renaming": lambda patch: patch.setattr(Path, "replace", full),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_full_disk_leaves_the_old_file_whole_and_nothing_half_written(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_text("manifests/latest", "old")
    with monkeypatch.context() as patch:
        MOMENTS[moment](patch)
        with pytest.raises(StoreError) as caught:
            storage.write_text("manifests/latest", "new and longer")
    assert str(caught.value) == (
        f"{tmp_path}/manifests/latest cannot be written: the disk is full. "
        "Free some space and run the same command with --resume; finished stages are kept."
    )
    assert storage.list_files() == ["manifests/latest"] and storage.read_text("manifests/latest") == "old"


def test_a_disk_that_is_really_full_keeps_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kibibytes=64) as disk:
        storage = Storage(str(disk / "run"))
        storage.write_text("status.json", "old")
        storage.append_text("metrics.jsonl", "{}\n")
        (disk / "others").write_bytes(b"x" * 40_000)
        with pytest.raises(StoreError, match=r"status\.json cannot be written: the disk is full"):
            storage.write_text("status.json", "new" * 10_000)
        with pytest.raises(StoreError, match=r"metrics\.jsonl cannot be written: the disk is full"):
            storage.append_text("metrics.jsonl", "{}\n" * 10_000)
        assert storage.read_text("status.json") == "old"
        assert storage.list_files() == ["metrics.jsonl", "status.json"]
        (disk / "others").unlink()
        storage.write_text("status.json", "new")
        assert storage.read_text("status.json") == "new"


def test_appending_to_a_full_disk_is_the_same_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StoreError, match=r"metrics\.jsonl cannot be written: the disk is full"):
            Storage(str(tmp_path)).append_text("metrics.jsonl", "{}\n")


def directory(path: Path, **files: str) -> str:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return str(path)


def test_a_directory_is_replaced_as_a_whole(storage: Storage, tmp_path: Path) -> None:
    old, new = (
        directory(tmp_path / "old", config="old", shard="old"),
        directory(tmp_path / "new", config="new", x="new"),
    )
    storage.replace_directory(old, "model", last="config")
    storage.replace_directory(new, "model", last="config")
    assert storage.list_files() == ["model/config", "model/x"]
    assert {storage.read_text(name) for name in storage.list_files()} == {"new"}


@pytest.mark.parametrize("call", range(12))
def test_a_crash_while_a_directory_is_replaced_leaves_no_mixture(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step that changes something: copying, waiting for the disk, renaming."""
    storage = Storage(str(tmp_path / "run"))
    old, new = directory(tmp_path / "old", a="old", b="old", c="old"), directory(tmp_path / "new", a="new", b="new")
    storage.replace_directory(old, "model", last="a")
    left = iter(range(call, -1, -1))

    class Crash(BaseException):
        pass

    def crashing(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(left, 0) == 0:
                raise Crash
            return real(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patched:
        for owner, name in ((shutil, "copyfile"), (os, "fsync"), (Path, "rename")):
            patched.setattr(owner, name, crashing(getattr(owner, name)))
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # a process that died clears nothing up
        with suppress(Crash):
            storage.replace_directory(new, "model", last="a")
    found = {path.name: path.read_text() for path in (tmp_path / "run/model").glob("*")}
    assert found in ({}, {"a": "old", "b": "old", "c": "old"}, {"a": "new", "b": "new"})
    storage.replace_directory(new, "model", last="a")
    assert storage.list_files() == ["model/a", "model/b"], "and the next time clears up"


def test_on_an_object_store_the_file_that_is_looked_for_goes_first_and_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(f"memory://{uuid.uuid4()}/run")
    storage.replace_directory(directory(tmp_path / "old", a="1", b="1"), "model", last="a")
    seen: list[tuple[str, str]] = []
    remove, write = Storage.remove, Storage.write_bytes

    def removed(self: Storage, relative: str) -> None:
        seen.append(("remove", relative))
        remove(self, relative)

    def written(self: Storage, relative: str, data: bytes) -> None:
        seen.append(("write", relative))
        write(self, relative, data)

    monkeypatch.setattr(Storage, "remove", removed)
    monkeypatch.setattr(Storage, "write_bytes", written)
    storage.replace_directory(directory(tmp_path / "new", a="2", b="2", c="2"), "model", last="a")
    kinds = [(kind, name.removeprefix("model/")) for kind, name in seen]
    assert kinds == [("remove", "a"), ("remove", "b"), ("write", "b"), ("write", "c"), ("write", "a")]


Synced = list[tuple[str, int]]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    """What is waited for from now on: path and size on the disk at that moment; renames are among them."""
    found: Synced = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def noted(descriptor: int) -> None:
        found.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), os.fstat(descriptor).st_size))
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        found.append((f"renamed to {target}", 0))
        return replace(self, target)

    def renamed(self: Path, target: Path) -> Path:
        found.append((f"renamed to {target}", 0))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "rename", renamed)
    return found


def test_names_are_on_the_disk_when_a_write_returns(tmp_path: Path, synced: Synced) -> None:
    """After a power failure a manifest may not be there without the blobs that it names."""
    Storage(str(tmp_path)).write_text("new/er/a.txt", "x" * 100)
    part, renamed, *directories = synced
    assert part[0].endswith(".part") and part[1] == 100, "all of it, before it gets its name"
    assert renamed[0] == f"renamed to {tmp_path}/new/er/a.txt"
    assert {path for path, _ in directories} == {str(tmp_path / at) for at in ("", "new", "new/er")}


def test_a_new_directory_is_on_the_disk_before_it_has_its_name(tmp_path: Path, synced: Synced) -> None:
    storage = Storage(str(tmp_path / "run"))
    new = directory(tmp_path / "new", a="1", b="22")
    for _ in range(2):  # the second time there is an old one, which makes room for the new one
        synced.clear()
        storage.replace_directory(new, "model", last="a")
        names = [path.rpartition("/")[2] for path, _ in synced]
        placed = names.index("model")
        assert {"a", "b"} < set(names[:placed])
        assert any(name.startswith(".model-new-") for name in names[:placed])
        assert names[placed + 1] == "run"


def test_whoever_reads_a_file_goes_on_reading_the_old_one_while_it_is_replaced(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_text("a.txt", "old")
    with (tmp_path / "a.txt").open() as reader:
        storage.write_text("a.txt", "new and longer")
        assert reader.read() == "old"
