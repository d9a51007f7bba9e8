from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from growtx.data import text_files
from growtx.data.text_files import FileRange, ReadOptions, find_files, is_divisible, read_range, read_texts
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


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


PACKERS = [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_compressed_files_are_read_as_they_are(tmp_path: Path, suffix: str, pack: object) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(b'{"text": "One"}\n{"text": "Two"}\n'))  # type: ignore[operator]
    assert _texts(tmp_path / f"a.jsonl{suffix}") == ["One", "Two"]


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_compression_is_known_by_its_first_bytes_whatever_a_file_is_called(
    tmp_path: Path, suffix: str, pack: object
) -> None:
    for number, name in enumerate(("a.jsonl", "b.jsonl.gz", "c.jsonl.zst")):
        rows = json.dumps({"text": f"text {number}"}).encode()
        (tmp_path / name).write_bytes(pack(rows))  # type: ignore[operator]
        assert _texts(tmp_path / name) == [f"text {number}"]


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_broken_compression_names_the_file(tmp_path: Path, suffix: str, pack: object) -> None:
    whole = pack(PARAGRAPH.encode() * 1000)  # type: ignore[operator]
    for broken in (whole[:-20], whole[:30] + b"\0" * 20 + whole[50:], b"plain text"):
        (tmp_path / f"a.txt{suffix}").write_bytes(broken)
        with pytest.raises(DataError, match=rf"a.txt{suffix}"):
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
        (b'{"txt": "a"}', r"line 2: there is no column 'text'.*Its columns: txt"),
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
        ("table.xlsx", "table.xlsx is of an unsupported type.*jsonl.*parquet"),
        ("noending", "noending is of an unsupported type"),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "table.xlsx").write_text("a,b")
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


# What else people have.


ROWS = [{"id": 1, "text": 'One,\n"two"'}, {"id": 2, "text": None}, {"id": 3, "text": "Три 三 🙂"}]
TEXTS = [row["text"] for row in ROWS if row["text"]]


def _csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.json": lambda path: path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=2), encoding="utf-8"),
    "lines.json": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "one.json": lambda path: path.write_text(json.dumps(ROWS[0]) + json.dumps(ROWS[2])),
    "a.csv": _csv,
    "a.tsv": lambda path: _csv(path, "\t"),
    "a.feather": lambda path: feather.write_feather(pa.Table.from_pylist(ROWS), path),
    "a.arrow": lambda path: _arrow(path, pa.ipc.new_stream),
    "b.arrow": lambda path: _arrow(path, pa.ipc.new_file),
}


def _arrow(path: Path, new: Callable[..., Any]) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("name", WRITERS)
def test_other_kinds_of_files_are_read(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert _texts(tmp_path / name) == TEXTS
    assert _texts(tmp_path / name, ReadOptions(where={"id": (3,)})) == TEXTS[1:]
    with pytest.raises(DataError, match=r"there is no column 'body'.*text"):
        _texts(tmp_path / name, ReadOptions("body"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"text": "a"}, {"text": ', r"a\.json, object 2: not valid JSON.*write it as \.jsonl"),
        ("a.json", b'[{"text": "a"}', r"object 2: not valid JSON \(the array does not end\)"),
        ("a.json", b'[{"text": "a"}, 3]', r"object 2: not a JSON object"),
        ("a.csv", b'id,text\n1,"open', r"a\.csv, row 1: not valid CSV.*Quote"),
        ("a.csv", b"id,text\n1,two,three", r"row 1: 3 values under 2 names.*Quote"),
        ("a.csv", b"id,text\n1,\xff", r"a\.csv: not a readable csv file"),
        ("a.feather", b"ARROW1 and nothing else", r"a\.feather: not a readable arrow file"),
        ("a.arrow", b"no arrow", r"a\.arrow: not a readable arrow file"),
        ("a.jsonl", b'{"text": "' + b"x" * 3000 + b'"}\n', r"line 1: longer than .*Divide it.*\.txt"),
    ],
)
def test_what_is_wrong_with_other_files_is_one_sentence(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LARGEST_ROW", 2000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        _texts(tmp_path / name)


CHAT = {"id": 7, "meta": {"title": "Rivers"}, "messages": [{"role": "user", "content": "Hi"}, {"content": "Ho"}]}
CHAT["messages"][1]["role"] = "assistant"  # type: ignore[index]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "feather"])
@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("meta.title", "Rivers"),
        ("messages[].content", "Hi\nHo"),
        ("{meta.title}: {messages[].content}", "Rivers: Hi\nHo"),
    ],
)
def test_text_is_found_inside_columns_and_put_into_templates(kind: str, column: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    empty = {"id": 8, "meta": {"title": None}, "messages": []}
    if kind.startswith("json"):
        path.write_text("\n".join(json.dumps(row) for row in (CHAT, empty)))
    else:
        table = pa.Table.from_pylist([CHAT, empty])
        pq.write_table(table, path) if kind == "parquet" else feather.write_feather(table, path)
    assert _texts(path, ReadOptions(column)) == [text]
    assert _texts(path, ReadOptions(column, {"id": (8,)})) == []


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("column", ["messages", "messages[].role.name", "id", "meta[]", "{id}: {meta.title}"])
def test_a_column_without_text_names_the_places_that_have_some(kind: str, column: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(CHAT))
    else:
        pq.write_table(pa.Table.from_pylist([CHAT]), path)
    with pytest.raises(DataError) as caught:
        _texts(path, ReadOptions(column))
    offered = caught.value.remedy.removeprefix("Set text_column to one of ").split(", ")
    assert offered
    for name in offered:
        assert _texts(path, ReadOptions(name))


def test_a_column_may_be_called_like_a_path(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "a.parquet", {"meta.text": ["One"], "{x}": ["Two"]})
    assert _texts(path, ReadOptions("meta.text")) == ["One"]
    assert _texts(path, ReadOptions("{x}")) == ["Two"]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "feather"])
def test_ranges_of_a_file_hold_every_document_once(kind: str, count: int, tmp_path: Path) -> None:
    path, texts = tmp_path / f"a.{kind}", [f"row {number} " + "ж" * (number * 7 % 50) for number in range(40)]
    if kind == "txt":
        path.write_text("\n".join(texts))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
    else:
        feather.write_feather(pa.table({"text": texts}), path, chunksize=6)
    assert is_divisible(str(path))
    parts = [[text for text, _ in read_range(FileRange(str(path), n, count), ReadOptions())] for n in range(count)]
    found = [line for part in parts for text in part for line in text.splitlines()]
    assert [line.strip() for line in found] == [text.strip() for text in texts]
    assert count == 1 or max(map(len, parts)) < 40


def test_braces_and_brackets_name_files_as_in_a_shell(tmp_path: Path) -> None:
    (tmp_path / "set[1]").mkdir()
    for name in ("a-en.txt", "b-ru.txt", "c-de.txt", "set[1]/d.txt", "set[1]/e.txt", "{f,g}.txt"):
        (tmp_path / name).write_text(name)

    def names(pattern: str) -> list[str]:
        return [Path(path).name for path in find_files((f"{tmp_path}/{pattern}",))]

    assert names("{a,b}-*.txt") == ["a-en.txt", "b-ru.txt"]
    assert names("*-{en,{ru,de}}.txt") == ["a-en.txt", "b-ru.txt", "c-de.txt"]
    assert names("set[1]/*.txt") == ["d.txt", "e.txt"]
    assert names("[ab]-*.txt") == ["a-en.txt", "b-ru.txt"]
    assert names("{f,g}.txt") == ["{f,g}.txt"]


@pytest.mark.parametrize(
    "pattern", ["http://127.0.0.1:9/a.jsonl", "http://127.0.0.1:9/*.parquet", "hf://datasets/a/b/*"]
)
def test_a_place_that_does_not_answer_is_one_sentence(pattern: str) -> None:
    with pytest.raises(DataError) as caught:
        find_files((pattern,))
    assert pattern in caught.value.problem and "\n" not in str(caught.value)
    assert "Check" in caught.value.remedy


def test_files_are_read_over_http(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One"}\n')
    _parquet(tmp_path / "b.parquet", {"text": ["Two", "Three"]})
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        paths = find_files((f"{address}/a.jsonl", f"{address}/b.parquet"))
        assert [text for path in paths for text in _texts(path)] == ["One", "Two", "Three"]
        with pytest.raises(DataError, match=r"There is no file .*/c\.jsonl|c\.jsonl cannot be reached"):
            find_files((f"{address}/c.jsonl",))
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...
