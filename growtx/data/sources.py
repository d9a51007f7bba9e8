"""Where text comes from: files, Hugging Face data sets, the embedded microworld; and which of it is held out.

A document is held out for validation by a hash of its own text, never by its position, its source or the run's
seed: duplicates cannot end up on both sides, and runs with other seeds, mixes or specialists hold out the same text.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from growtx.config import ConfigModel
from growtx.data.text_files import (
    FileRange,
    ReadOptions,
    Texts,
    answering,
    find_files,
    is_divisible,
    kind_of,
    read_range,
    text_of_row,
)
from growtx.exceptions import DataError, reason_of
from growtx.generator import key64, permute
from growtx.microworld import MicroworldConfig, documents
from growtx.storage import open_filesystem

logger = logging.getLogger(__name__)

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
    files: str | tuple[str, ...] | None = Field(
        None, description="paths or globs of text, JSON, CSV, Parquet or Arrow files"
    )
    hf: str | None = Field(None, description="Hugging Face data set, as load_dataset takes it")
    config: str | None = Field(None, description="hf: configuration of the data set")
    split: str = Field("train", description="hf: split to read")
    revision: str | None = Field(None, description="hf: commit, tag or branch of the data set")
    data_files: str | tuple[str, ...] | None = Field(None, description="hf: files for a loader such as `parquet`")
    streaming: bool = Field(False, description="hf: read over the network without downloading everything first")
    microworld: MicroworldConfig | None = Field(None, description="the embedded generated corpus")
    text_column: str = Field(
        "text", min_length=1, description="column of the text, a path such as messages[].content, or '{title}: {body}'"
    )
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        default_factory=dict, description="keep only rows with these values, e.g. {lang: en}"
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
    epochs: float = Field(
        1.0, ge=1, allow_inf_nan=False, description="times that the plan reads its text; of large sources, 1/epochs"
    )
    deduplicate: Literal["exact"] | None = Field(
        None, description="exact: of documents of a source that differ in white space alone, only the first is kept"
    )
    local_bytes: int | None = Field(
        None, ge=1, description="packed data of a bucket that a node keeps at once; null: all that it has read"
    )

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


def text_key(text: str) -> int:
    """64 bits of a hash; white space is normalised first, so that copies that differ in line breaks are the same."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")


def held_out_position(text: str) -> float:
    """Where a text lies in [0, 1): below `validation_fraction` it is held out. Copies stay on one side."""
    return text_key(text) / 2**64


# A source in parts: what can be read without the rest of it. Small sources have one.


SMALL_BYTES = 64 << 20  # of files, as they are: a source up to this size is one part, which the driver packs
WHOLE_BYTES = 1 << 30  # of its text: more than that makes another shard
SMALLEST_PART, LARGEST_PART = 16 << 20, 64 << 20
SIZES_AT_ONCE = 16
PARTS_OF_A_SAMPLE = 4  # of a source, where some of its text will do
PARTS_WANTED = 256  # of a source, if they get a size between these two
SHARD_BYTES = 256 << 20  # of text in a packed shard; a part that holds more makes several


@dataclass(frozen=True)
class Part:
    """Some of a source's files, or a range of one; None: the whole source, whatever kind it is.

    Attributes:
        num_bytes: size of what is read, as it is stored.
        shard_bytes: how much text goes into one packed shard.
    """

    files: tuple[FileRange, ...] | None
    num_bytes: int
    shard_bytes: int

    @property
    def is_small(self) -> bool:
        """Whether it is a whole source that the driver packs by itself, in one shard."""
        return self.files is None and self.num_bytes <= SMALL_BYTES


def divide(source: SourceConfig) -> list[Part]:
    """The parts of a source in the order in which they are read, a function of its files' names and sizes alone.

    Files are often sorted by age or topic, and a plan may need a part of them only: many parts come in a mixed order.

    Raises:
        DataError: a file is missing or cannot be reached.
    """
    files = _divisible_files(source)
    total = sum(size for _, size in files)
    if total <= SMALL_BYTES or source.max_documents is not None or source.max_bytes is not None:
        return [Part(None, total, shard_bytes=WHOLE_BYTES if total <= SMALL_BYTES else SHARD_BYTES)]
    size = min(LARGEST_PART, max(SMALLEST_PART, total // PARTS_WANTED))
    parts = [Part(ranges, num_bytes, SHARD_BYTES) for ranges, num_bytes in _grouped(files, size)]
    order = permute(np.arange(len(parts)), len(parts), key64(len(parts)))
    return [parts[number] for number in order]


def _grouped(files: list[tuple[str, int]], wanted: int) -> Iterator[tuple[tuple[FileRange, ...], int]]:
    """Neighbouring small files together, large ones in ranges."""
    group: list[FileRange] = []
    num_bytes = 0
    for path, size in files:
        count = -(-size // wanted) if size > 2 * wanted and is_divisible(path) else 1
        if count > 1:
            for index in range(count):
                yield (FileRange(path, index, count),), size * (index + 1) // count - size * index // count
            continue
        group.append(FileRange(path))
        num_bytes += size
        if num_bytes >= wanted:
            yield tuple(group), num_bytes
            group, num_bytes = [], 0
    if group:
        yield tuple(group), num_bytes


def _divisible_files(source: SourceConfig) -> list[tuple[str, int]]:
    """The files that a source is read from, with their sizes; none where it is no matter of files."""
    if source.microworld is not None:
        return []
    paths = source_files(source) if source.files is not None else _files_of_hub(source)
    with ThreadPoolExecutor(SIZES_AT_ONCE) as pool:  # a bucket takes its time for each
        return list(zip(paths, pool.map(_size, paths), strict=True))


def _size(path: str) -> int:
    filesystem, stripped = open_filesystem(path)
    with answering(path):
        return int(filesystem.size(stripped) or 0)  # a server need not say


def _files_of_hub(source: SourceConfig) -> list[str]:
    """Files that the loader of a data set would read row by row, as we do; none where it does more than that."""
    builder = hub_builder(source)
    files = (builder.config.data_files or {}).get(source.split)
    if not files or builder.dataset_name is None or getattr(builder.config, "field", None):
        return []
    if type(builder).__name__ not in ("Parquet", "Json", "Csv", "Arrow"):
        return []
    try:
        kinds = {kind_of(str(path)) for path in files}
    except DataError:
        return []
    return [str(path) for path in files] if "text" not in kinds else []


def hub_builder(source: SourceConfig) -> Any:
    """What `datasets` knows of a data set before it reads any.

    Raises:
        DataError: nothing, because it cannot be reached or does not exist.
    """
    import datasets

    try:
        return datasets.load_dataset_builder(**load_arguments(source))
    except Exception as error:  # whatever hub, network or file system raise
        problem = f"The data set {source.hf} cannot be loaded ({reason_of(error)})"
        raise DataError(problem, "Check name, config and network") from error


# Documents.


def iterate_documents(config: DataConfig, *, parts: Mapping[str, int] | int | None = None) -> Iterator[Document]:
    """All documents of all sources, one source after the other, in a fixed order.

    Args:
        parts: how many parts of each source are read, or of those that are named; None: all of them.

    Raises:
        DataError: naming file and line, for anything that is missing or cannot be read.
    """
    for name, source in zip(config.source_names, config.sources, strict=True):
        number = parts.get(name) if isinstance(parts, Mapping) else parts
        yield from iterate_source(source, name, config.validation_fraction, parts=number)


def iterate_source(
    source: SourceConfig, name: str, validation_fraction: float, *, parts: int | None = None
) -> Iterator[Document]:
    """The documents of one source. Raises DataError as `iterate_documents`, also if there is no document at all."""
    is_empty = True
    for part in divide(source)[:parts]:
        for document in iterate_part(source, name, validation_fraction, part):
            is_empty = False
            yield document
    if is_empty:
        raise no_text(source, name)


def no_text(source: SourceConfig, name: str) -> DataError:
    return DataError(f"Source {name!r} has no text", _remedy_for_nothing(source))


@dataclass
class Dropped:
    """Rows that are in no window, by reason."""

    counts: Counter[str] = field(default_factory=Counter)


def iterate_part(
    source: SourceConfig,
    name: str,
    validation_fraction: float,
    part: Part,
    *,
    dropped: Dropped | None = None,
    left_out: frozenset[int] = frozenset(),
) -> Iterator[Document]:
    """The documents of one part of a source, without those that are blank.

    Args:
        dropped: counts the rows that are in no document.
        left_out: numbers of documents that are duplicates of others.

    Raises:
        DataError: naming file and line, for anything that cannot be read.
    """
    dropped = dropped or Dropped()
    num_documents = num_bytes = 0
    for text, place in _with_patience(lambda: _texts(source, part), name, is_remote=_is_remote(source, part)):
        if not text.strip():
            dropped.counts["empty"] += 1
            continue
        for piece in _divided(text):
            size = _num_bytes(piece, place)
            num_bytes += size
            if source.max_bytes is not None and num_bytes > source.max_bytes:
                return
            num_documents += 1
            if num_documents - 1 in left_out:
                dropped.counts["duplicate"] += 1
            else:
                position = held_out_position(piece)
                yield Document(piece, name, "validation" if position < validation_fraction else "train", position, size)
            if num_documents == source.max_documents:
                return


def _num_bytes(text: str, place: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:  # JSON can spell lone surrogates, which no UTF-8 file can hold
        raise DataError(f"{place}: not valid Unicode (lone surrogate)", "Correct or remove the text") from error


def _is_remote(source: SourceConfig, part: Part) -> bool:
    if source.hf is not None:
        return source.streaming or part.files is not None
    paths = [file.path for file in part.files] if part.files is not None else _as_tuple(source.files or ())
    return any("://" in path for path in paths)


LONGEST_DOCUMENT = 16 << 20  # characters


def _divided(text: str) -> Iterator[str]:
    """A text as documents that fit into memory with all that is made of them, cut at white space where there is any."""
    start = 0
    while len(text) - start > LONGEST_DOCUMENT:
        end = start + LONGEST_DOCUMENT
        cut = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end)) + 1 or end
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text


PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before a place on the network is asked again


def _with_patience(read: Callable[[], Texts], name: str, *, is_remote: bool) -> Texts:
    """Read on after an interruption of the network: from the beginning, without what has been given already.

    Raises:
        DataError: naming how far it came, if it breaks off again and again in one place.
    """
    done, failures = 0, 0
    while True:
        try:
            for number, item in enumerate(read()):
                if number >= done:
                    done, failures = number + 1, 0
                    yield item
            return
        except DataError as error:
            if not is_remote or isinstance(
                error.__cause__, (FileNotFoundError, PermissionError, ValueError, KeyError, type(None))
            ):
                raise
            if failures == len(PAUSES):
                problem = f"Source {name!r} broke off {failures + 1} times after {done:,} rows of a part"
                remedy = "Run the same command again when it answers: what is packed is kept"
                raise DataError(f"{problem} ({error.problem})", remedy) from error
            logger.warning("Source %r broke off after %d rows: %s", name, done, error.problem)
            time.sleep(PAUSES[failures])
            failures += 1


def _remedy_for_nothing(source: SourceConfig) -> str:
    if source.max_bytes is not None:
        return "Raise max_bytes, as the first document is longer, or check the source"
    return "Check its filter `where`" if source.where else "Check that its files are not empty"


def _texts(source: SourceConfig, part: Part) -> Texts:
    if part.files is not None:
        for file in part.files:
            yield from read_range(file, source.read_options)
    elif source.microworld is not None:
        for number, text in enumerate(documents(source.microworld)):
            yield text, f"microworld, document {number}"
    elif source.files is not None:
        for path in source_files(source):
            yield from read_range(FileRange(path), source.read_options)
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


def _hub_texts(source: SourceConfig) -> Texts:
    import datasets

    try:
        dataset = datasets.load_dataset(**load_arguments(source), split=source.split, streaming=source.streaming)
        for number, row in enumerate(dataset):
            yield from text_of_row(row, f"{source.hf}, split {source.split}, row {number}", source.read_options)
    except DataError:
        raise
    except Exception as error:  # load_dataset raises whatever hub, network, builder or file system raise
        problem = f"The data set {source.hf} cannot be loaded ({reason_of(error)})"
        raise DataError(problem, "Check name, config and split") from error
