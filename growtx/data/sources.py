"""Where text comes from: files, Hugging Face data sets, the embedded microworld; and which of it is held out.

A document is held out for validation by a hash of its own text, never by its position, its source or the run's
seed: duplicates cannot end up on both sides, and runs with other seeds, mixes or specialists hold out the same text.
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from growtx import storage
from growtx.config import ConfigModel
from growtx.exceptions import DataError
from growtx.microworld import MicroworldConfig, documents
from growtx.storage import open_filesystem

# Reading text files as documents: txt, jsonl and parquet, plain or compressed, on any fsspec filesystem.
#
# Everything streams: no file is ever held in memory as a whole.


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
        DataError: a pattern that matches nothing, or a file of an unsupported type.
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
    if found := _existing(pattern) or _existing(storage.resolve_address(pattern)):
        return found
    starts = " or ".join(dict.fromkeys((str(Path.cwd()), storage.root())))
    problem = "No file matches" if any(character in pattern for character in "*?[") else "There is no file"
    raise DataError(f"{problem} {pattern}", f"Check the path; relative paths start at {starts}")


def _existing(pattern: str) -> list[str]:
    filesystem, path = open_filesystem(pattern)
    if filesystem.isfile(path):  # first, so that a file whose name contains [ or ? can be named
        return [str(filesystem.unstrip_protocol(path)).removeprefix("file://")]
    if filesystem.isdir(path):
        raise DataError(f"{pattern} is a directory", f"Name its files, such as {pattern.rstrip('/')}/*.parquet")
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
    raise DataError(f"{path} is of an unsupported type", f"Use one of {known} (text files also as .gz, .bz2, .xz)")


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


def _lines(handle: IO[bytes], path: str, longest: int | None = None) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers; decoding line by line is what lets an error name the line.

    Args:
        longest: bytes; a longer line comes in parts, cut at white space where there is any.
    """
    number, encoding = 1, "utf-8-sig"
    for line in _parts_of_lines(handle, longest):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x})", "Convert the file to UTF-8"
            ) from error
        yield number, text.replace("\r\n", "\n")
        number, encoding = number + line.endswith(b"\n"), "utf-8"


def _parts_of_lines(handle: IO[bytes], longest: int | None) -> Iterator[bytes]:
    if longest is None:
        yield from handle
        return
    left = b""
    while data := handle.readline(longest):
        data, left = left + data, b""
        if not data.endswith(b"\n") and len(data) >= longest:
            end = max(data.rfind(b" "), data.rfind(b"\t")) + 1 or _last_character(data)
            data, left = data[:end], data[end:]
        yield data
    if left:
        yield left


def _last_character(data: bytes) -> int:
    """Where the last character of UTF-8 begins: the rest of it may come with the next bytes."""
    start = len(data) - 1
    while start > len(data) - 4 and start > 0 and data[start] & 0xC0 == 0x80:
        start -= 1
    return start or len(data)


def _read_text(path: str, options: ReadOptions) -> Iterator[tuple[str, str]]:
    with fsspec.open(path, "rb", compression="infer") as handle:
        gathered: list[str] = []
        num_bytes, start = 0, 1
        for number, line in _lines(handle, path, longest=4 * options.document_bytes):
            gathered.append(line)
            num_bytes += len(line.encode())
            at_paragraph_end = not line.strip() and num_bytes >= options.document_bytes
            if at_paragraph_end or num_bytes >= 4 * options.document_bytes:
                if text := "".join(gathered).strip():
                    yield text, f"{path}, line {start}"
                gathered, num_bytes, start = [], 0, number + line.endswith("\n")
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
                    raise DataError(f"{place}: there is no {column!r}", f"Its columns: {', '.join(map(str, row))}")
            if all(row[column] in values for column, values in options.where.items()):
                yield from _checked(row[options.text_column], place, options)


def _checked(value: Any, place: str, options: ReadOptions) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if not isinstance(value, str):
        raise DataError(f"{place}: {options.text_column!r} is not text but {value!r:.40}", "Set text_column")
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


Split = Literal["train", "validation"]
Scalar = str | int | bool


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a source, on its side of the held-out split."""

    text: str
    source: str
    split: Split
    position: float  # in [0, 1), see `held_out_position`
    num_bytes: int  # UTF-8


class SourceConfig(ConfigModel):
    """One source of documents: exactly one of `files`, `hf` and `microworld`."""

    name: str | None = Field(None, min_length=1, description="name in reports; default: from files, hf or microworld")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="share of sampled windows, relative to others")
    files: str | tuple[str, ...] | None = Field(None, description="paths or globs of txt, jsonl or parquet files")
    hf: str | None = Field(None, description="Hugging Face data set, as load_dataset takes it")
    config: str | None = Field(None, description="hf: configuration of the data set")
    split: str = Field("train", description="hf: split to read")
    revision: str | None = Field(None, description="hf: commit, tag or branch of the data set")
    data_files: str | tuple[str, ...] | None = Field(None, description="hf: files for a loader such as `parquet`")
    streaming: bool = Field(False, description="hf: read over the network without downloading everything first")
    microworld: MicroworldConfig | None = Field(None, description="the embedded generated corpus")
    text_column: str = Field("text", min_length=1, description="column of the text (jsonl, parquet, hf)")
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        default_factory=dict, description="keep only rows with these values, e.g. {lang: en} (jsonl, parquet, hf)"
    )
    document_bytes: int = Field(4096, ge=64, description="txt: paragraphs are gathered into documents of this size")
    max_documents: int | None = Field(None, ge=1, description="stop after this many documents")
    max_bytes: int | None = Field(None, ge=1, description="stop before this many bytes of UTF-8 are exceeded")
    license: str | None = Field(None, description="licence of the text, for the model card")

    @field_validator("files", "data_files")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is not None and (not value or "" in _as_tuple(value)):
            raise ValueError("must name at least one file")
        return value

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> SourceConfig:
        kinds = [kind for kind in ("files", "hf", "microworld") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"a source needs exactly one of files, hf and microworld, not {' and '.join(kinds) or 'none'}"
            )
        if self.hf is None:
            of_hf = ("config", "data_files", "revision", "split", "streaming")
            defaults = type(self).model_fields  # compared by value, so that a resolved configuration can be read again
            if misplaced := [key for key in of_hf if getattr(self, key) != defaults[key].default]:
                raise ValueError(f"{', '.join(misplaced)} can only be set together with hf")
        if self.microworld is not None and self.where:
            raise ValueError("where cannot be used with microworld: choose microworld.languages instead")
        return self

    @property
    def default_name(self) -> str:
        """`name`, or one made of what is read."""
        if self.name is not None:
            return self.name
        if self.microworld is not None:
            return "microworld"
        if self.files is None:
            return "/".join(part for part in (self.hf, self.config) if part)
        parts = PurePosixPath(_as_tuple(self.files)[0]).parts
        plain = [part.split(".")[0] for part in parts if not re.search(r"[*?\[]", part)]
        return next((part for part in reversed(plain) if part.strip("/")), "files")

    @property
    def read_options(self) -> ReadOptions:
        """The part of this configuration that readers of files need."""
        where = {key: value if isinstance(value, tuple) else (value,) for key, value in self.where.items()}
        return ReadOptions(self.text_column, where, self.document_bytes)


class DataConfig(ConfigModel):
    """The text of a run: weighted sources and the share of documents held out for validation."""

    sources: tuple[SourceConfig, ...] = Field(
        default_factory=lambda: (SourceConfig.model_validate({"microworld": {}}),), description="where text comes from"
    )
    validation_fraction: float = Field(0.02, gt=0, lt=1, description="share of documents that is held out")

    @model_validator(mode="after")
    def _usable(self) -> DataConfig:
        if not self.sources:
            raise ValueError("at least one source is needed")
        names = [source.name for source in self.sources if source.name is not None]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"each source needs a name of its own, {', '.join(twice)} is used twice")
        return self

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        """One unique name per source."""
        names: list[str] = []
        taken = {source.name for source in self.sources}
        for source in self.sources:
            name, number = source.default_name, 1
            while source.name is None and name in taken:
                number += 1
                name = f"{source.default_name}-{number}"
            taken.add(name)
            names.append(name)
        return tuple(names)


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def held_out_position(text: str) -> float:
    """Where a text lies in [0, 1): below `validation_fraction` it is held out.

    White space is normalised first, so that copies that differ in line breaks stay on one side.
    """
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def iterate_documents(config: DataConfig) -> Iterator[Document]:
    """All documents of all sources, one source after the other, in a fixed order.

    Raises:
        DataError: naming file and line, for anything that is missing or cannot be read.
    """
    for name, source in zip(config.source_names, config.sources, strict=True):
        yield from iterate_source(source, name, config.validation_fraction)


def iterate_source(source: SourceConfig, name: str, validation_fraction: float) -> Iterator[Document]:
    """The documents of one source. Raises DataError as `iterate_documents`, also if there is no document at all."""
    num_documents = num_bytes = 0
    for text, place in _texts(source):
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:  # JSON can spell lone surrogates, which no UTF-8 file can hold
            raise DataError(f"{place}: not valid Unicode (lone surrogate)", "Correct or remove the text") from error
        num_bytes += size
        if source.max_bytes is not None and num_bytes > source.max_bytes:
            break
        num_documents += 1
        position = held_out_position(text)
        yield Document(text, name, "validation" if position < validation_fraction else "train", position, size)
        if num_documents == source.max_documents:
            break
    if not num_documents:
        raise DataError(f"Source {name!r} has no text", _remedy_for_nothing(source))


def _remedy_for_nothing(source: SourceConfig) -> str:
    if source.max_bytes is not None:
        return "Raise max_bytes, as the first document is longer, or check the source"
    return "Check its filter `where`" if source.where else "Check that its files are not empty"


def _texts(source: SourceConfig) -> Iterator[tuple[str, str]]:
    if source.microworld is not None:
        for number, text in enumerate(documents(source.microworld)):
            yield text, f"microworld, document {number}"
    elif source.files is not None:
        for path in source_files(source):
            yield from read_texts(path, source.read_options)
    else:
        yield from _hub_texts(source)


def source_files(source: SourceConfig) -> list[str]:
    """Paths that a `files` source reads now. Raises DataError if a pattern matches nothing."""
    assert source.files is not None
    return find_files(_as_tuple(source.files))


def load_arguments(source: SourceConfig) -> dict[str, Any]:
    """Keyword arguments that `load_dataset` and `load_dataset_builder` share for an `hf` source."""
    files = source.data_files
    data_files = list(files) if isinstance(files, tuple) else files
    return {"path": source.hf, "name": source.config, "data_files": data_files, "revision": source.revision}


def _hub_texts(source: SourceConfig) -> Iterator[tuple[str, str]]:
    import datasets

    try:
        dataset = datasets.load_dataset(**load_arguments(source), split=source.split, streaming=source.streaming)
        where = source.read_options.where
        for number, row in enumerate(dataset):
            place = f"{source.hf}, split {source.split}, row {number}"
            for column in (source.text_column, *where):
                if column not in row:
                    raise DataError(f"{place}: there is no column {column!r}", f"Its columns: {', '.join(row)}")
            text = row[source.text_column]
            if not isinstance(text, str | None):
                raise DataError(f"{place}: {source.text_column!r} is not text but {text!r:.40}", "Set text_column")
            if text and text.strip() and all(row[column] in values for column, values in where.items()):
                yield text, place
    except DataError:
        raise
    except Exception as error:  # load_dataset raises whatever hub, network, builder or file system raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"The data set {source.hf} cannot be loaded ({reason})", "Check name, config and split"
        ) from error
