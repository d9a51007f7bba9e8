from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from growtx.data.pack_cache import ABANDONED_AFTER_SECONDS, INDEX, PackCache, damage, read_index
from growtx.exceptions import DataError
from growtx.storage import replace_file


def _fill(directory: Path) -> dict[str, Any]:
    (directory / "a.bin").write_bytes(b"12345")
    return {"files": {"a": {"file": "a.bin", "size_bytes": 5}}}


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(params=["local", "remote"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackCache:
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "node"))
    if request.param == "local":
        return PackCache(str(tmp_path / "cache"))
    return PackCache(f"memory://{tmp_path.name}/cache")


def test_an_entry_is_absent_until_it_is_complete(cache: PackCache) -> None:
    assert cache.entry("key") is None
    directory = cache.build("key", _fill)
    assert cache.entry("key") == directory
    assert _names(directory) == ["a.bin", INDEX]
    assert read_index(directory)["files"]["a"]["size_bytes"] == 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(cache: PackCache, number: int) -> None:
    def fill(directory: Path) -> dict[str, Any]:
        (directory / "a.bin").write_bytes(b"123")
        raise OSError(number, os.strerror(number))

    elsewhere = "set another cache_dir" if cache.is_local else "let GROWTX_NODE_CACHE name a larger disk"
    with pytest.raises(DataError, match=rf"No space is left for packed data in .*Free space there or {elsewhere}"):
        cache.build("key", fill)
    assert cache.entry("key") is None
    assert _names(cache.local) == []


def test_other_failures_leave_nothing_either(cache: PackCache) -> None:
    def fill(directory: Path) -> dict[str, Any]:
        raise DataError("a.txt is broken")

    with pytest.raises(DataError, match=r"a.txt is broken"):
        cache.build("key", fill)
    assert _names(cache.local) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(DataError, match=r"cannot be written to .*file/cache \(.+\)\. Set another cache_dir"):
        PackCache(str(tmp_path / "file" / "cache")).build("key", _fill)


@pytest.mark.parametrize("harm", ["truncate", "remove", "index"])
def test_damage_is_found_and_repaired_with_a_warning(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PackCache(str(tmp_path))
    directory = cache.build("key", _fill)
    if harm == "truncate":
        (directory / "a.bin").write_bytes(b"123")
    elif harm == "remove":
        (directory / "a.bin").unlink()
    else:
        (directory / INDEX).write_text("{")
    assert cache.entry("key") is None
    cache.build("key", _fill)
    assert cache.entry("key") == directory
    assert (directory / "a.bin").read_bytes() == b"12345"
    assert "is damaged" in caplog.text


def test_whoever_comes_second_keeps_what_is_there(cache: PackCache) -> None:
    first = cache.build("key", _fill)
    inode = first.stat().st_ino

    def fill_meanwhile(directory: Path) -> dict[str, Any]:
        return _fill(directory)

    assert cache.build("key", fill_meanwhile) == first
    assert first.stat().st_ino == inode
    assert [name for name in _names(cache.local) if name.startswith(".")] == []


def test_what_killed_processes_left_is_swept_but_not_what_is_in_work(tmp_path: Path) -> None:
    cache = PackCache(str(tmp_path))
    for name in ("old", "new"):
        (tmp_path / f".making-{name}").mkdir()
    old = time.time() - ABANDONED_AFTER_SECONDS - 60
    os.utime(tmp_path / ".making-old", (old, old))
    cache.build("key", _fill)
    assert _names(tmp_path) == [".making-new", "key"]


def test_another_node_fetches_the_entry_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path.name}/shared"
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "first"))
    PackCache(url).build("key", _fill)
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "second"))
    directory = PackCache(url).entry("key")
    assert directory is not None
    assert directory.is_relative_to(tmp_path / "second")
    assert damage(directory) is None
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}/shared", recursive=True)
    assert PackCache(url).entry("key") == directory


def test_an_upload_that_was_cut_off_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path.name}/shared"
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "first"))
    PackCache(url).build("key", _fill)
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}/shared/key/{INDEX}")
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "second"))
    assert PackCache(url).entry("key") is None


def test_whoever_sees_an_index_elsewhere_sees_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "node"))
    memory, order = fsspec.filesystem("memory"), []
    put_file, rm = type(memory).put_file, type(memory).rm

    def recording_put(self: Any, local: str, path: str, **options: Any) -> Any:
        order.append(f"put {Path(path).name}")
        return put_file(self, local, path, **options)

    def recording_rm(self: Any, path: str, **options: Any) -> Any:
        order.append(f"rm {Path(path).name}")
        return rm(self, path, **options)

    monkeypatch.setattr(type(memory), "put_file", recording_put)
    monkeypatch.setattr(type(memory), "rm", recording_rm)
    cache = PackCache(f"memory://{tmp_path.name}/order")
    directory = cache.build("key", _fill)
    assert order == ["put a.bin", f"put {INDEX}"]
    order.clear()
    (directory / "a.bin").write_bytes(b"cut")  # damaged on this node: built and uploaded again
    cache.build("key", _fill)
    assert order == [f"rm {INDEX}", "put a.bin", f"put {INDEX}"]


def test_small_documents_are_replaced_as_a_whole(cache: PackCache) -> None:
    cache.write_json("mix.json", [1])
    path = cache.write_json("mix.json", {"a": 2})
    with fsspec.open(path, "r") as handle:
        assert json.load(handle) == {"a": 2}


def test_paths_of_a_relative_cache_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PackCache("cache").write_json("mix.json", 1) == str(tmp_path / "cache" / "mix.json")


def test_a_failed_save_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "a.json", lambda file: file.write(b"old"))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        replace_file(tmp_path / "a.json", lambda file: file.write(b"new"))
    assert (tmp_path / "a.json").read_text() == "old"
    assert _names(tmp_path) == ["a.json"]
