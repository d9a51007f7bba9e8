"""Reading text files as documents: txt, jsonl and parquet, plain or compressed, on any fsspec filesystem.

Everything streams: no file is ever held in memory as a whole.
"""

from __future__ import annotations

import errno
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from growtx import location
from growtx.data.filesystems import locate
from growtx.exceptions import DataError

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})
JSON_LINES_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet"})
COMPRESSED_SUFFIXES = frozenset({".gz", ".bz2", ".xz"})
ROWS_PER_BATCH = 512


@dataclass(frozen=True)
class ReadOptions:
    """What to take from a file: the text column, which rows, and how long a document of a txt file gets."""

    text_column: str = "text"
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    document_bytes: int = 4096


def find_files(patterns: tuple[str, ...]) -> list[str]:
    """Paths (or URLs) that match `patterns`, sorted within each pattern, no file twice.

    Raises:
        DataError: a pattern that matches nothing, or a file of a type that is not read.
    """
    paths: dict[str, None] = {}
    for pattern in patterns:
        matches = _matches(pattern)
        for path in matches:
            _kind(path)
        paths.update(dict.fromkeys(matches))
    return list(paths)


def _matches(pattern: str) -> list[str]:
    """Files of a pattern. A relative one starts in the working directory or, if nothing is there, where runs lie."""
    if found := _existing(pattern) or _existing(location.locate(pattern)):
        return found
    starts = " or ".join(dict.fromkeys((str(Path.cwd()), location.root())))
    problem = "No file matches" if any(character in pattern for character in "*?[") else "There is no file"
    raise DataError(f"{problem} {pattern}", f"Check the path; relative paths start at {starts}")


def _existing(pattern: str) -> list[str]:
    filesystem, path = locate(pattern)
    if filesystem.isfile(path):  # first, so that a file whose name contains [ or ? can be named
        return [str(filesystem.unstrip_protocol(path)).removeprefix("file://")]
    if filesystem.isdir(path):
        raise DataError(f"{pattern} is a directory", f"Say which files: {pattern.rstrip('/')}/*.parquet")
    found = sorted(str(match) for match in filesystem.glob(path) if filesystem.isfile(match))
    return [str(filesystem.unstrip_protocol(match)).removeprefix("file://") for match in found]


def _kind(path: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix in TEXT_SUFFIXES:
        return "text"
    if suffix in JSON_LINES_SUFFIXES:
        return "json lines"
    if suffix in PARQUET_SUFFIXES:
        return "parquet"
    known = ", ".join(sorted(TEXT_SUFFIXES | JSON_LINES_SUFFIXES | PARQUET_SUFFIXES))
    raise DataError(f"{path} is of a type that is not read", f"Use one of {known} (text files also as .gz, .bz2, .xz)")


def read_texts(path: str, options: ReadOptions) -> Iterator[tuple[str, str]]:
    """Yield (text, place) for every document; `place` names file and line or row, for messages.

    A txt file is read as paragraphs separated by blank lines, gathered into documents of about
    `options.document_bytes`: a small file is one document, a book becomes many, and text without blank lines is
    cut at a line end after four times that size. Null and blank texts are skipped.

    Raises:
        DataError: naming file and line, for anything that cannot be read.
    """
    readers = {"text": _read_text, "json lines": _read_json_lines, "parquet": _read_parquet}
    with _reading(path):
        yield from readers[_kind(path)](path, options)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # all but the first: broken compression
        if getattr(error, "errno", None) == errno.ENOENT:
            raise DataError(f"There is no file {path}", "Check the path") from error
        raise DataError(f"{path} cannot be read ({_reason(error)})", "Check or replace the file") from error


def _reason(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())[:200]


def _lines(handle: IO[bytes], path: str) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers; decoding line by line is what lets an error name the line."""
    for number, line in enumerate(handle, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x})", "Convert the file to UTF-8"
            ) from error
        yield number, text.replace("\r\n", "\n")


def _read_text(path: str, options: ReadOptions) -> Iterator[tuple[str, str]]:
    with fsspec.open(path, "rb", compression="infer") as handle:
        gathered: list[str] = []
        num_bytes, start = 0, 1
        for number, line in _lines(handle, path):
            gathered.append(line)
            num_bytes += len(line.encode())
            at_paragraph_end = not line.strip() and num_bytes >= options.document_bytes
            if at_paragraph_end or num_bytes >= 4 * options.document_bytes:
                if text := "".join(gathered).strip():
                    yield text, f"{path}, line {start}"
                gathered, num_bytes, start = [], 0, number + 1
        if text := "".join(gathered).strip():
            yield text, f"{path}, line {start}"


def _read_json_lines(path: str, options: ReadOptions) -> Iterator[tuple[str, str]]:
    with fsspec.open(path, "rb", compression="infer") as handle:
        for number, line in _lines(handle, path):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: not valid JSON ({_reason(error)})", "Correct or remove the line") from error
            if not isinstance(row, dict):
                raise DataError(f"{place}: not a JSON object", f'Write each line as {{"{options.text_column}": "..."}}')
            for column in (options.text_column, *options.where):
                if column not in row:
                    raise DataError(f"{place}: there is no {column!r}", f"Columns there: {', '.join(map(str, row))}")
            if all(row[column] in values for column, values in options.where.items()):
                yield from _checked(row[options.text_column], place, options)


def _checked(value: Any, place: str, options: ReadOptions) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if not isinstance(value, str):
        raise DataError(f"{place}: {options.text_column!r} is not a text but {value!r:.40}", "Set text_column")
    if value.strip():
        yield value, place


def _read_parquet(path: str, options: ReadOptions) -> Iterator[tuple[str, str]]:
    columns = [options.text_column, *(name for name in options.where if name != options.text_column)]
    with fsspec.open(path, "rb") as handle:
        try:
            file = pq.ParquetFile(handle)
            _check_schema(file.schema_arrow, path, options)
            row_number = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                for row in batch.to_pylist():
                    row_number += 1
                    if all(row[column] in values for column, values in options.where.items()):
                        yield from _checked(row[options.text_column], f"{path}, row {row_number}", options)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a readable parquet file ({_reason(error)})", "Replace the file") from error


def _check_schema(schema: pa.Schema, path: str, options: ReadOptions) -> None:
    for column in (options.text_column, *options.where):
        if column not in schema.names:
            known = ", ".join(schema.names)
            raise DataError(f"{path}: there is no column {column!r}", f"Set text_column to one of {known}")
    kind = schema.field(options.text_column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        names = [item.name for item in schema if pa.types.is_string(item.type) or pa.types.is_large_string(item.type)]
        remedy = f"Set text_column to one of {', '.join(names)}" if names else "Use a file with a text column"
        raise DataError(f"{path}: column {options.text_column!r} holds {kind}, not text", remedy)
