from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from growtx.data.packing import WindowWriter, map_windows, sha256_of_windows


def _write(path: Path, documents: list[list[int]], context_length: int = 8) -> dict[str, int | str]:
    with WindowWriter(path, context_length, pad_token_id=0) as writer:
        for tokens in documents:
            writer.write(np.array(tokens, dtype=np.int32), num_bytes=10)
        return writer.finish()


def test_what_was_written_is_mapped_and_only_the_tail_is_padded(tmp_path: Path) -> None:
    entry = _write(tmp_path / "a.arrow", [[1, 2, 3], [4, 5, 6, 7, 8, 9]])
    windows = map_windows(tmp_path / "a.arrow")
    assert windows.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 0, 0, 0, 0, 0, 0, 0]]
    assert windows.dtype == np.int32
    assert {name: entry[name] for name in ("num_windows", "num_documents", "num_tokens", "num_bytes")} == {
        "num_windows": 2,
        "num_documents": 2,
        "num_tokens": 9,
        "num_bytes": 20,
    }
    assert entry["sha256"] == sha256_of_windows(windows, rows_per_chunk=1)
    assert entry["size_bytes"] == (tmp_path / "a.arrow").stat().st_size


def test_a_full_last_window_gets_no_padding(tmp_path: Path) -> None:
    _write(tmp_path / "a.arrow", [list(range(1, 17))])
    assert map_windows(tmp_path / "a.arrow").shape == (2, 8)


def test_no_document_means_no_window(tmp_path: Path) -> None:
    assert _write(tmp_path / "a.arrow", [])["num_windows"] == 0
    assert map_windows(tmp_path / "a.arrow").shape == (0, 8)


def test_windows_are_mapped_read_only_without_a_copy(tmp_path: Path) -> None:
    _write(tmp_path / "a.arrow", [[7] * 80_000])
    before = pa.total_allocated_bytes()
    windows = map_windows(tmp_path / "a.arrow")
    assert pa.total_allocated_bytes() - before < 10_000
    assert not windows.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        windows[0, 0] = 1


def test_only_the_arrow_file_remains(tmp_path: Path) -> None:
    _write(tmp_path / "a.arrow", [[1]])
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrow"]


def test_other_programs_can_read_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "a.arrow", [[1, 2, 3]], context_length=2)
    with pa.ipc.open_file(str(tmp_path / "a.arrow")) as reader:
        assert reader.read_all().to_pydict() == {"tokens": [[1, 2], [3, 0]]}
