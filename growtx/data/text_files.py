"""Reading files as documents: text, JSON, CSV, Parquet and Arrow, plain or compressed, on any fsspec filesystem.

Everything streams: no file is ever held in memory as a whole. A file that can be entered in its middle is read in
ranges, `index` of `count`, that together hold every document once: text and JSON lines from line to line, Parquet
from row to row, Arrow from batch to batch. Everything else has one range.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import errno
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from growtx import storage
from growtx.exceptions import DataError, GrowtxError, reason_of
from growtx.storage import is_local, open_filesystem

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})
JSON_LINES_SUFFIXES = frozenset({".jsonl", ".ndjson"})
JSON_SUFFIXES = frozenset({".json"})
CSV_SUFFIXES = frozenset({".csv", ".tsv"})
PARQUET_SUFFIXES = frozenset({".parquet"})
ARROW_SUFFIXES = frozenset({".arrow", ".feather", ".ipc"})
COMPRESSED_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst"})
ROWS_PER_BATCH = 512
BATCH_BYTES = 32 << 20
READ_AT_ONCE = 4 << 20
LARGEST_ROW = 64 << 20  # bytes of a JSON line or a CSV field
CHUNK = 1 << 20

Texts = Iterator[tuple[str, str]]


# What a document of a row is: a column, something inside one, or several of them in a template.


@dataclass(frozen=True)
class ReadOptions:
    """What to take from a file: the text column, which rows, and how long a document of a txt file gets.

    Attributes:
        text_column: name of a column, a path into one (`meta.body`, `messages[].content`; the items of a list become
            lines), or a template with such names in braces (`{title}: {body}`).
    """

    text_column: str = "text"
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    document_bytes: int = 4096

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The paths that the text is made of."""
        found = tuple(dict.fromkeys(_PLACE.findall(self.text_column)))
        return found or (self.text_column,)

    def text_of(self, row: Mapping[str, Any]) -> Any:
        """The text of a row: None or blank where it has none, and something else where it is no text.

        Raises:
            KeyError: there is no such column.
        """
        if self.text_column in row or not _PLACE.search(self.text_column):
            return _value_at(row, self.text_column)
        values = {name: _value_at(row, name) for name in self.names}
        odd = next((value for value in values.values() if not isinstance(value, str | None)), None)
        if odd is not None or not any(value and value.strip() for value in values.values()):
            return odd
        return _PLACE.sub(lambda place: values[place[1]] or "", self.text_column)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the values that are asked for."""
        return all(row[column] in values for column, values in self.where.items())


_PLACE = re.compile(r"\{([^{}]+)\}")


def _value_at(row: Mapping[str, Any], path: str) -> Any:
    if path in row:  # a column may be called `a.b`
        return row[path]
    head, *rest = path.split(".")
    value: Any = row[head.removesuffix("[]")]
    return _inside(value, head.endswith("[]"), rest)


def _inside(value: Any, is_list: bool, steps: Sequence[str]) -> Any:
    if value is None:
        return None
    if is_list:
        if not isinstance(value, list | tuple):
            return _NotThere(f"no list but {value!r:.40}")
        parts = [_inside(item, False, steps) for item in value]
        odd = next((part for part in parts if not isinstance(part, str | None)), None)
        return odd if odd is not None else "\n".join(part for part in parts if part)
    if not steps:
        return value
    head, *rest = steps
    if not isinstance(value, Mapping) or head.removesuffix("[]") not in value:
        return _NotThere(f"{value!r:.40}, without {head.removesuffix('[]')!r}")
    return _inside(value[head.removesuffix("[]")], head.endswith("[]"), rest)


@dataclass(frozen=True)
class _NotThere:
    what: str

    def __repr__(self) -> str:
        return self.what


def _paths_in(value: Any, prefix: str = "") -> Iterator[str]:
    """Where text stands in a row, as paths that `text_column` takes."""
    if isinstance(value, str) and prefix:
        yield prefix
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _paths_in(item, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list | tuple) and value:
        yield from _paths_in(value[0], f"{prefix}[]")


def _paths_in_type(kind: pa.DataType, prefix: str) -> Iterator[str]:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        yield prefix
    elif pa.types.is_struct(kind):
        for item in kind:
            yield from _paths_in_type(item.type, f"{prefix}.{item.name}")
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _paths_in_type(kind.value_type, f"{prefix}[]")


def text_of_row(row: Mapping[str, Any], place: str, options: ReadOptions) -> Texts:
    """The document of a row, blank where it has none; nothing where the row is not asked for.

    Raises:
        DataError: naming the place, for a column that is missing or holds no text.
    """
    try:
        if not options.takes(row):
            return
        text = options.text_of(row)
    except KeyError as error:
        raise DataError(f"{place}: there is no column {str(error.args[0])!r}", f"Its columns: {_listed(row)}") from None
    if not isinstance(text, str | None):
        problem = f"{place}: {options.text_column!r} is not text but {text!r:.40}"
        raise DataError(problem, _column_remedy(_paths_in(row)))
    yield text or "", place


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names))


def _column_remedy(paths: Iterable[str]) -> str:
    known = list(dict.fromkeys(paths))
    return f"Set text_column to one of {', '.join(known[:12])}" if known else "Use a file with a text column"


# Which files a pattern names.


def find_files(patterns: tuple[str, ...]) -> list[str]:
    """Paths (or URLs) that match `patterns`, sorted within each pattern, no file twice.

    Raises:
        DataError: a pattern that matches nothing, a file of an unsupported type, or a place that does not answer.
    """
    paths: dict[str, None] = {}
    for pattern in patterns:
        matches = _matches(pattern)
        for path in matches:
            kind_of(path)
        paths.update(dict.fromkeys(matches))
    return list(paths)


def _matches(pattern: str) -> list[str]:
    """Files of a pattern. A relative one starts in the working directory or, if nothing is there, where runs lie."""
    if found := _existing(pattern) or _existing(storage.resolve_address(pattern)):
        return found
    starts = " or ".join(dict.fromkeys((str(Path.cwd()), storage.root())))
    problem = "No file matches" if any(character in pattern for character in "*?[{") else "There is no file"
    raise DataError(f"{problem} {pattern}", f"Check the path; relative paths start at {starts}")


def _existing(pattern: str) -> list[str]:
    filesystem, path = open_filesystem(pattern)
    with answering(pattern):
        if filesystem.isfile(path):  # first, so that a file whose name contains [, { or ? can be named
            return [str(filesystem.unstrip_protocol(path)).removeprefix("file://")]
        if filesystem.isdir(path):
            raise DataError(f"{pattern} is a directory", f"Name its files, such as {pattern.rstrip('/')}/*.parquet")
        expanded = _expand_braces(path)
        found = sorted({match for part in expanded for match in _globbed(filesystem, part)})
        return [str(filesystem.unstrip_protocol(match)).removeprefix("file://") for match in found]


def _globbed(filesystem: Any, path: str) -> list[str]:
    """Matches of a pattern; brackets that match nothing are taken for a part of the name."""
    for pattern in dict.fromkeys((path, path.replace("[", "[[]"))):
        if found := [str(match) for match in filesystem.glob(pattern) if filesystem.isfile(match)]:
            return found
    return []


_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def _expand_braces(pattern: str) -> list[str]:
    """`{a,b}` as in a shell, also several of them and nested ones."""
    if not (braces := _BRACES.search(pattern)):
        return [pattern]
    start, end = braces.span()
    return [
        expanded
        for choice in braces[1].split(",")
        for expanded in _expand_braces(f"{pattern[:start]}{choice}{pattern[end:]}")
    ]


@contextmanager
def answering(address: str) -> Iterator[None]:
    """What a place on the network says when it does not answer becomes a sentence."""
    try:
        yield
    except GrowtxError:
        raise
    except Exception as error:  # every filesystem has errors of its own, and of the libraries below it
        remedy = "Check the address and the network" if "://" in address else "Check the path and its permissions"
        raise DataError(f"{address} cannot be reached ({reason_of(error)})", remedy) from error


def kind_of(path: str) -> str:
    """How a file is read, by its name.

    Raises:
        DataError: in no way that we know.
    """
    name = re.sub(r"[?#].*$", "", path) if path.startswith(("http://", "https://")) else path
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    for kind, known in _KINDS.items():
        if suffix in known:
            return kind
    known_suffixes = ", ".join(sorted(frozenset().union(*_KINDS.values())))
    compressed = ", ".join(sorted(COMPRESSED_SUFFIXES))
    raise DataError(f"{path} is of an unsupported type", f"Use one of {known_suffixes} (text also as {compressed})")


_KINDS = {
    "text": TEXT_SUFFIXES,
    "json lines": JSON_LINES_SUFFIXES,
    "json": JSON_SUFFIXES,
    "csv": CSV_SUFFIXES,
    "parquet": PARQUET_SUFFIXES,
    "arrow": ARROW_SUFFIXES,
}


def is_divisible(path: str) -> bool:
    """Whether ranges of a file can be read without what comes before them."""
    with _reading(path):
        return kind_of(path) in ("parquet", "arrow") or (
            kind_of(path) in ("text", "json lines") and _compression(path) is None
        )


# Reading.


@dataclass(frozen=True)
class FileRange:
    """Part `index` of `count` equal ones of a file."""

    path: str
    index: int = 0
    count: int = 1

    @property
    def where(self) -> str:
        """For messages."""
        return self.path if self.count == 1 else f"{self.path} (part {self.index + 1} of {self.count})"

    def bounds(self, size: int) -> tuple[int, int]:
        return size * self.index // self.count, size * (self.index + 1) // self.count


def read_texts(path: str, options: ReadOptions) -> Texts:
    """Yield (text, place) for every document that is not blank; `place` names file and line or row, for messages.

    A txt file is read as paragraphs separated by blank lines, gathered into documents of about
    `options.document_bytes`: a small file is one document, a book becomes many, and text without blank lines is
    cut at a line end after four times that size.

    Raises:
        DataError: naming file and line, for anything that cannot be read.
    """
    return ((text, place) for text, place in read_range(FileRange(path), options) if text.strip())


def read_range(part: FileRange, options: ReadOptions) -> Texts:
    """As `read_texts`, of a range of a file; rows without text come as blank documents."""
    readers: dict[str, Callable[[FileRange, ReadOptions], Texts]] = {
        "text": _read_text,
        "json lines": _read_json_lines,
        "json": _read_json,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
    }
    with _reading(part.path):
        yield from readers[kind_of(part.path)](part, options)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except GrowtxError:
        raise
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # all but the first: broken compression
        if getattr(error, "errno", None) == errno.ENOENT:
            raise DataError(f"There is no file {path}", "Check the path") from error
        raise DataError(f"{path} cannot be read ({reason_of(error)})", "Check or replace the file") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        problem = f"{path}: not a readable {kind_of(path)} file ({reason_of(error)})"
        raise DataError(problem, "Replace the file") from error
    except Exception as error:
        if "://" not in path:
            raise
        raise DataError(f"{path} cannot be read ({reason_of(error)})", "Check the address and the network") from error


_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file as they are."""
    filesystem, stripped = open_filesystem(path)
    with ExitStack() as stack:
        if is_local(filesystem):
            yield stack.enter_context(Path(stripped).open("rb"))
        else:
            yield io.BufferedReader(stack.enter_context(filesystem.open(stripped, "rb")), CHUNK)


def _compression(path: str) -> str | None:
    """By what a file begins with, whatever it is called; by its name where that says nothing."""
    with _opened(path) as handle:
        start = handle.read(8)
    by_content = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), None)
    suffix = PurePosixPath(re.sub(r"[?#].*$", "", path) if "://" in path else path).suffix.lower()
    return by_content or (suffix if suffix in COMPRESSED_SUFFIXES else None)


@contextmanager
def _decompressed(path: str) -> Iterator[IO[bytes]]:
    compression = _compression(path)
    with _opened(path) as handle, ExitStack() as stack:
        if compression == ".gz":
            yield stack.enter_context(gzip.open(handle))  # type: ignore[arg-type]
        elif compression == ".bz2":
            yield stack.enter_context(bz2.open(handle))
        elif compression == ".xz":
            yield stack.enter_context(lzma.open(handle))
        elif compression == ".zst":
            stream: Any = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(handle, "r"), "zstd"))
            yield io.BufferedReader(stream, CHUNK)
        else:
            yield handle


def _lines_in(part: FileRange, handle: IO[bytes]) -> Iterator[int | None]:
    """Go to the first line that begins in the range; then give its end, again and again."""
    if part.count == 1:
        return itertools.repeat(None)
    start, end = part.bounds(handle.seek(0, io.SEEK_END))
    handle.seek(max(0, start - 1))
    while start and (rest := handle.readline(CHUNK)) and not rest.endswith(b"\n") and handle.tell() < end:
        pass
    return itertools.repeat(end)


def _lines(handle: IO[bytes], part: FileRange, longest: int, *, divide: bool) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers; decoding line by line is what lets an error name the line.

    Args:
        longest: bytes of a line.
        divide: a longer one comes in parts, cut at white space where there is any; otherwise it is an error.
    """
    number, encoding = 1, "utf-8-sig" if part.index == 0 else "utf-8"
    for line in _parts_of_lines(handle, part, longest, divide=divide):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{part.where}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x})", "Convert the file to UTF-8"
            ) from error
        if not divide and len(line) >= longest and not line.endswith(b"\n"):
            raise DataError(
                f"{part.where}, line {number}: longer than {longest >> 20} MiB",
                "Divide it into several lines, or write the text into a .txt file, which is cut into documents",
            )
        yield number, text.replace("\r\n", "\n")
        number, encoding = number + line.endswith(b"\n"), "utf-8"


def _parts_of_lines(handle: IO[bytes], part: FileRange, longest: int, *, divide: bool) -> Iterator[bytes]:
    ends = _lines_in(part, handle)
    left, at_start = b"", True
    while not (at_start and (end := next(ends)) is not None and handle.tell() >= end):
        data = handle.readline(longest)
        if not data:
            break
        data, left = left + data, b""
        if divide and not data.endswith(b"\n") and len(data) >= longest:
            cut = max(data.rfind(b" "), data.rfind(b"\t")) + 1 or _last_character(data)
            data, left = data[:cut], data[cut:]
        at_start = data.endswith(b"\n")
        yield data
    if left:
        yield left


def _last_character(data: bytes) -> int:
    """Where the last character of UTF-8 begins: the rest of it may come with the next bytes."""
    start = len(data) - 1
    while start > len(data) - 4 and start > 0 and data[start] & 0xC0 == 0x80:
        start -= 1
    return start or len(data)


def _read_text(part: FileRange, options: ReadOptions) -> Texts:
    with _decompressed(part.path) as handle:
        gathered: list[str] = []
        num_bytes, start = 0, 1
        for number, line in _lines(handle, part, 4 * options.document_bytes, divide=True):
            gathered.append(line)
            num_bytes += len(line.encode())
            at_paragraph_end = not line.strip() and num_bytes >= options.document_bytes
            if at_paragraph_end or num_bytes >= 4 * options.document_bytes:
                if text := "".join(gathered).strip():
                    yield text, f"{part.where}, line {start}"
                gathered, num_bytes, start = [], 0, number + line.endswith("\n")
        if text := "".join(gathered).strip():
            yield text, f"{part.where}, line {start}"


def _read_json_lines(part: FileRange, options: ReadOptions) -> Texts:
    with _decompressed(part.path) as handle:
        for number, line in _lines(handle, part, LARGEST_ROW, divide=False):
            if not line.strip():
                continue
            place = f"{part.where}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{place}: not valid JSON ({reason_of(error)})", "Correct or remove the line"
                ) from error
            yield from _text_of_json(row, place, options)


def _text_of_json(row: Any, place: str, options: ReadOptions) -> Texts:
    if not isinstance(row, dict):
        raise DataError(f"{place}: not a JSON object", f'Write each as {{"{options.names[0]}": "..."}}')
    yield from text_of_row(row, place, options)


def _read_json(part: FileRange, options: ReadOptions) -> Texts:
    """An array of objects, or objects one after the other."""
    with _decompressed(part.path) as handle:
        for number, row in enumerate(_json_values(handle, part.path), start=1):
            yield from _text_of_json(row, f"{part.path}, object {number}", options)


def _json_values(handle: IO[bytes], path: str) -> Iterator[Any]:
    """The values of a file, one at a time; those of an array that holds everything, one at a time too."""
    decode, parse = codecs.getincrementaldecoder("utf-8-sig")().decode, json.JSONDecoder().raw_decode
    text, is_array, at_end, number = "", None, False, 0
    while True:
        text = text.lstrip(" \t\r\n,")
        if is_array is None and text:
            is_array = text.startswith("[")
            text = text.removeprefix("[").lstrip(" \t\r\n,")
        try:
            if not text or (is_array and text.startswith("]")):
                raise ValueError("the array does not end" if is_array and not text else "")
            value, end = parse(text)
        except (ValueError, RecursionError) as error:
            if at_end or len(text) > LARGEST_ROW:
                if (is_array and text.strip() == "]") or (not is_array and not text):
                    return
                problem = f"{path}, object {number + 1}: not valid JSON ({reason_of(error)})"
                raise DataError(problem, "Correct the file, or write it as .jsonl, an object on each line") from error
            data = handle.read(max(CHUNK, len(text)))
            at_end = not data
            text += decode(data, at_end)
            continue
        number, text = number + 1, text[end:]
        yield value


def _read_csv(part: FileRange, options: ReadOptions) -> Texts:
    """Rows under a line of names; every value is text, so `where` is compared with what it looks like."""
    csv.field_size_limit(LARGEST_ROW)
    where = {column: tuple(map(str, values)) for column, values in options.where.items()}
    texts = ReadOptions(options.text_column, where)
    with _decompressed(part.path) as handle:
        lines = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
        delimiter = "\t" if ".tsv" in PurePosixPath(part.path.lower()).suffixes else ","
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        number = 0
        try:
            names = next(rows, [])
            for number, values in enumerate(rows, start=1):
                if len(values) != len(names) and values:
                    problem = f"{part.path}, row {number}: {len(values)} values under {len(names)} names"
                    raise DataError(problem, "Quote values that hold the delimiter or a line end")
                if values:
                    yield from text_of_row(dict(zip(names, values, strict=True)), f"{part.path}, row {number}", texts)
        except csv.Error as error:
            problem = f"{part.path}, row {number + 1}: not valid CSV ({reason_of(error)})"
            raise DataError(problem, "Quote values that hold the delimiter or a line end") from error
        finally:
            lines.detach()


def _read_parquet(part: FileRange, options: ReadOptions) -> Texts:
    with _opened(part.path) as handle:
        file = pq.ParquetFile(handle, buffer_size=READ_AT_ONCE)  # otherwise all of a row group's column at once
        columns = _columns(file.schema_arrow, part.path, options)
        start, end = part.bounds(file.metadata.num_rows)
        groups, first = _row_groups(file.metadata, start, end)
        row_number = first
        for batch in file.iter_batches(_rows_at_once(file.metadata, groups), row_groups=groups, columns=columns):
            skipped = min(batch.num_rows, max(0, start - row_number))
            wanted = batch.slice(skipped, max(0, min(batch.num_rows, end - row_number) - skipped))
            yield from _texts_of_batch(wanted, row_number + skipped, part.path, options)
            row_number += batch.num_rows
            if row_number >= end:
                break


def _rows_at_once(metadata: Any, groups: list[int]) -> int:
    """Rows of a batch: fewer where they are long."""
    sizes = [metadata.row_group(n).total_byte_size / max(1, metadata.row_group(n).num_rows) for n in groups]
    return max(1, min(ROWS_PER_BATCH, int(BATCH_BYTES / max(1.0, *sizes)))) if sizes else ROWS_PER_BATCH


def _row_groups(metadata: Any, start: int, end: int) -> tuple[list[int], int]:
    """Row groups that hold rows `start` to `end`, and the first row in them."""
    groups: list[int] = []
    first = row = 0
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).num_rows
        if row < end and row + size > start:
            first = first if groups else row
            groups.append(number)
        row += size
    return groups, first


def _read_arrow(part: FileRange, options: ReadOptions) -> Texts:
    """A file of batches, as Feather is; or a stream of them, as the library `datasets` writes, which has one range."""
    filesystem, stripped = open_filesystem(part.path)
    with ExitStack() as stack:
        if is_local(filesystem):  # batches of other people may be large: mapped, they take no memory
            source = stack.enter_context(pa.memory_map(stripped, "r"))
        else:
            source = pa.PythonFile(stack.enter_context(_opened(part.path)), "r")
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            file = pa.ipc.open_file(source)
            first, last = part.bounds(file.num_record_batches)
            batches: Iterator[Any] = (file.get_batch(number) for number in range(first, last))
            schema = file.schema
        else:
            stream = pa.ipc.open_stream(source)
            batches, schema = iter(stream if part.index == 0 else ()), stream.schema
        columns = _columns(schema, part.path, options)
        row_number = 0
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                rows = batch.select(columns).slice(start, ROWS_PER_BATCH)
                yield from _texts_of_batch(rows, row_number + start, part.where, options)
            row_number += batch.num_rows


def _texts_of_batch(batch: pa.RecordBatch, first: int, where: str, options: ReadOptions) -> Texts:
    for number, row in enumerate(batch.to_pylist(), start=first + 1):
        yield from text_of_row(row, f"{where}, row {number}", options)


def _columns(schema: pa.Schema, path: str, options: ReadOptions) -> list[str]:
    """The columns that must be read.

    Raises:
        DataError: one of them is missing, or the text is none.
    """
    wanted: dict[str, None] = {}
    for name in options.names if options.text_column not in schema.names else (options.text_column,):
        column = name if name in schema.names else name.split(".")[0].removesuffix("[]")
        _check_column(schema, column, path)
        paths = list(_paths_in_type(schema.field(column).type, column))
        if name not in paths:
            known = paths or [found for item in schema for found in _paths_in_type(item.type, item.name)]
            kind = schema.field(column).type
            problem = f"{path}: column {name!r} holds {kind}, not text"
            raise DataError(problem if name == column else f"{path}: there is no text {name!r}", _column_remedy(known))
        wanted[column] = None
    for column in options.where:
        _check_column(schema, column, path)
        wanted[column] = None
    return list(wanted)


def _check_column(schema: pa.Schema, column: str, path: str) -> None:
    if column not in schema.names:
        known = ", ".join(schema.names)
        raise DataError(f"{path}: there is no column {column!r}", f"Set text_column to one of {known}")
