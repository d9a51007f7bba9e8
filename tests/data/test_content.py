from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from growtx.data.pack_cache import HashMemo, content_fingerprint
from growtx.data.sources import SourceConfig
from growtx.exceptions import DataError

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _fingerprint(tmp_path: Path, **source: Any) -> str:
    return content_fingerprint(SourceConfig.model_validate(source), HashMemo(tmp_path / "memo.json"))


def test_files_count_by_their_bytes_not_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One")
    before = _fingerprint(tmp_path, files=f"{tmp_path}/a.txt")
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert _fingerprint(tmp_path, files=f"{tmp_path}/b.txt", name="other", weight=3.0) == before
    (tmp_path / "b.txt").write_text("Two")
    assert _fingerprint(tmp_path, files=f"{tmp_path}/b.txt") != before


def test_how_a_file_is_read_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One")
    plain = _fingerprint(tmp_path, files=f"{tmp_path}/a.txt")
    for change in ({"text_column": "b"}, {"where": {"l": "en"}}, {"document_bytes": 99}, {"max_bytes": 9}):
        assert _fingerprint(tmp_path, files=f"{tmp_path}/a.txt", **change) != plain


def test_files_are_hashed_once_and_again_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One")
    first = HashMemo(tmp_path / "memo.json").sha256(str(path))
    memo = (tmp_path / "memo.json").read_text()
    assert HashMemo(tmp_path / "memo.json").sha256(str(path)) == first
    assert (tmp_path / "memo.json").read_text() == memo
    path.write_text("Two")
    assert HashMemo(tmp_path / "memo.json").sha256(str(path)) != first


def test_a_damaged_memo_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One")
    (tmp_path / "memo.json").write_text("{broken")
    assert HashMemo(tmp_path / "memo.json").sha256(str(tmp_path / "a.txt")).startswith("sha256:")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.txt cannot be read"):
        HashMemo(tmp_path / "memo.json").sha256(str(tmp_path / "gone.txt"))


def test_files_elsewhere_count_by_what_their_filesystem_knows(tmp_path: Path) -> None:
    with fsspec.open("memory://content/a.txt", "w") as handle:
        handle.write("One")
    first = HashMemo(tmp_path / "memo.json").sha256("memory://content/a.txt")
    with fsspec.open("memory://content/a.txt", "w") as handle:
        handle.write("Changed")
    assert first.startswith("ukey:")
    assert HashMemo(tmp_path / "memo.json").sha256("memory://content/a.txt") != first


def test_the_microworld_counts_by_configuration(tmp_path: Path) -> None:
    assert _fingerprint(tmp_path, microworld={}) == _fingerprint(tmp_path, microworld={"seed": 0})
    assert _fingerprint(tmp_path, microworld={}) != _fingerprint(tmp_path, microworld={"seed": 1})


def test_hub_data_sets_count_by_their_files(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    source = {"hf": "parquet", "data_files": str(path)}
    pq.write_table(pa.table({"text": ["One"]}), path)
    first = _fingerprint(tmp_path, **source)
    assert _fingerprint(tmp_path, **source) == first
    pq.write_table(pa.table({"text": ["Two"]}), path)
    os.utime(path, (1, 1))
    assert _fingerprint(tmp_path, **source) != first
