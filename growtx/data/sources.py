"""Where text comes from: files, Hugging Face data sets, the embedded microworld; and which of it is held out.

A document is held out for validation by a hash of its own text, never by its position, its source or the run's
seed: duplicates can not end up on both sides, and runs with other seeds, mixes or specialists hold out the same text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from growtx.config import ConfigModel
from growtx.data.microworld import MicroworldConfig, documents
from growtx.data.text_files import ReadOptions, find_files, read_texts
from growtx.exceptions import DataError

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
    license: str | None = Field(None, description="of the text, for the model card")

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
        return "Raise max_bytes: the first document is longer, or check the source"
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
                    raise DataError(f"{place}: there is no column {column!r}", f"Columns there: {', '.join(row)}")
            text = row[source.text_column]
            if not isinstance(text, str | None):
                raise DataError(f"{place}: {source.text_column!r} is not a text but {text!r:.40}", "Set text_column")
            if text and text.strip() and all(row[column] in values for column, values in where.items()):
                yield text, place
    except DataError:
        raise
    except Exception as error:  # load_dataset raises whatever hub, network, builder or file system raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"The data set {source.hf} cannot be loaded ({reason})", "Check name, config and split"
        ) from error
