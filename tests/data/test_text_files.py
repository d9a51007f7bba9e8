from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from growtx.data.sources import ReadOptions, find_files, read_texts
from growtx.exceptions import ConfigError, DataError

PARAGRAPH = "Der Fluß trägt Boote. Река несёт лодки. 河上有船。\n"


def _texts(path: Path | str, options: ReadOptions | None = None) -> list[str]:
    return [text for text, _ in read_texts(str(path), options or ReadOptions())]


def _parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_small_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    assert _texts(tmp_path / "a.txt") == ["One.\n\nTwo."]


def test_a_book_is_cut_between_paragraphs_and_nothing_is_lost(tmp_path: Path) -> None:
    book = "\n".join(f"{number} {PARAGRAPH}" for number in range(500))
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    texts = _texts(tmp_path / "book.txt", ReadOptions(document_bytes=1000))
    assert 30 < len(texts) < 60
    assert " ".join(texts).split() == book.split()
    assert all(text[0].isdigit() and text.endswith("。") for text in texts)


def test_text_without_blank_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text(PARAGRAPH * 200, encoding="utf-8")
    texts = _texts(tmp_path / "lines.txt", ReadOptions(document_bytes=500))
    assert len(texts) > 4
    assert "\n".join(texts) + "\n" == PARAGRAPH * 200


@pytest.mark.parametrize("unit", ["word ", "字", "🙂", "é"])
def test_one_endless_line_is_cut_into_documents_between_words_or_characters(tmp_path: Path, unit: str) -> None:
    """Many such files exist; as one document all of the text would be held out, or none of it."""
    text, options = unit * 3001, ReadOptions(document_bytes=100)
    (tmp_path / "line.txt").write_text(text, encoding="utf-8")
    documents = _texts(tmp_path / "line.txt", options)
    assert len(documents) > 10 and max(len(document.encode()) for document in documents) <= 2 * (400 + 4)
    assert "".join(documents).replace(" ", "") == text.replace(" ", "")
    for length in range(400, 900):  # whatever the last part is
        (tmp_path / "line.txt").write_text(unit * length, encoding="utf-8")
        assert sum(document.count(unit.strip()) for document in _texts(tmp_path / "line.txt", options)) == length
    assert " " not in unit or {word for document in documents for word in document.split()} == {"word"}
    (tmp_path / "broken.txt").write_bytes(b"fine\n" + text.encode() + b"\xff")
    with pytest.raises(DataError, match=r"line 2: not UTF-8 \(byte 0xff\)"):
        _texts(tmp_path / "broken.txt", options)


def test_byte_order_marks_and_windows_line_ends_vanish(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfOne\r\ntwo\r\n")
    assert _texts(tmp_path / "dos.txt") == ["One\ntwo"]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files_are_read_as_they_are(tmp_path: Path, suffix: str, pack: object) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(b'{"text": "One"}\n{"text": "Two"}\n'))  # type: ignore[operator]
    assert _texts(tmp_path / f"a.jsonl{suffix}") == ["One", "Two"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_broken_compression_names_the_file(tmp_path: Path, pack: object) -> None:
    suffix = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[pack]  # type: ignore[index]
    whole = pack(PARAGRAPH.encode() * 1000)  # type: ignore[operator]
    for broken in (whole[:-20], whole[:30] + b"\0" * 20 + whole[50:], b"plain text"):
        (tmp_path / f"a.txt{suffix}").write_bytes(broken)
        with pytest.raises(DataError, match=rf"a.txt{suffix} cannot be read"):
            _texts(tmp_path / f"a.txt{suffix}")


def test_json_lines_take_the_text_column_and_skip_what_is_empty(tmp_path: Path) -> None:
    rows = [
        {"body": "One", "lang": "en"},
        {"body": None, "lang": "en"},
        {"body": " ", "lang": "en"},
        {"body": "Два", "lang": "ru"},
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert _texts(tmp_path / "a.jsonl", ReadOptions("body")) == ["One", "Два"]
    assert _texts(tmp_path / "a.jsonl", ReadOptions("body", {"lang": ("ru", "zh")})) == ["Два"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "unfinished', r"line 2: not valid JSON"),
        (b'["text"]', r"line 2: not a JSON object"),
        (b'{"txt": "a"}', r"line 2: there is no 'text'.*Its columns: txt"),
        (b'{"text": 5}', r"line 2: 'text' is not text but 5"),
        (b'{"text": "\xff"}', r"line 2: not UTF-8 \(byte 0xff\)"),
        (b"[" * 100_000, r"line 2: not valid JSON"),
    ],
)
def test_a_broken_line_is_named_by_number(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, {message}"):
        _texts(tmp_path / "a.jsonl")


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("fine\nприятно\n".encode() + "плохо\n".encode("cp1251"))
    with pytest.raises(DataError, match=r"a\.txt, line 3: not UTF-8.*Convert"):
        _texts(tmp_path / "a.txt")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_text_is_read_from_any_kind_of_string_column(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["One", None, "Два", "三"], type=pa.string()).cast(kind)
    pq.write_table(pa.table({"text": column, "lang": ["en", "en", "ru", "zh"]}), tmp_path / "a.parquet")
    assert _texts(tmp_path / "a.parquet") == ["One", "Два", "三"]
    assert _texts(tmp_path / "a.parquet", ReadOptions(where={"lang": ("ru",)})) == ["Два"]


def test_parquet_rows_are_named_in_places(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", {"text": [f"t{number}" for number in range(1500)]})
    places = [place for _, place in read_texts(str(path), ReadOptions())]
    assert places[1200] == f"{path}, row 1201"


def test_wrong_parquet_columns_name_the_right_ones(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", {"body": ["One"], "count": [1]})
    with pytest.raises(DataError, match=r"no column 'text'.*body, count"):
        _texts(path)
    with pytest.raises(DataError, match=r"'count' holds int64, not text.*body"):
        _texts(path, ReadOptions("count"))


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", {"text": [PARAGRAPH * 50] * 100})
    whole = path.read_bytes()
    for broken in (whole[:-10], whole[: len(whole) // 2], b"", b"text", b"PAR1" + b"\0" * 100 + b"PAR1"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.parquet"):
            _texts(path)


def test_globs_are_sorted_and_files_named_twice_are_read_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text("x")
    found = find_files((f"{tmp_path}/*.txt", f"{tmp_path}/b.txt", f"{tmp_path}/**/*.jsonl"))
    assert [Path(path).name for path in found] == ["a.txt", "b.txt", "c.jsonl"]


def test_relative_patterns_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert find_files(("*.txt",)) == find_files(("a.txt",)) == [str(tmp_path / "a.txt")]


def test_names_with_glob_characters_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("One")
    assert [_texts(path) for path in find_files((str(tmp_path / "a[1].txt"),))] == [["One"]]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("missing.txt", "There is no file .*missing.txt.*relative paths start at"),
        ("*.txt", r"No file matches .*\*\.txt"),
        ("folder", "folder is a directory.*folder/"),
        ("table.csv", "table.csv is of an unsupported type.*jsonl.*parquet"),
        ("noending", "noending is of an unsupported type"),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "noending").write_text("a")
    with pytest.raises(DataError, match=message):
        find_files((str(tmp_path / pattern),))


def test_files_on_other_filesystems_are_read_by_url() -> None:
    with fsspec.open("memory://corpus/a.txt", "w") as handle:
        handle.write("One")
    (path,) = find_files(("memory://corpus/*.txt",))
    assert _texts(path) == ["One"]


def test_unknown_url_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"nowhere://a.txt cannot be reached"):
        find_files(("nowhere://a.txt",))
