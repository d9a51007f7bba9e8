"""Packing: documents become windows of tokens once, and every worker memory-maps them from then on.

`<cache_dir>/packed/` holds
    <source key>/{train,validation}.arrow, index.json    one source, whatever mixes it takes part in
    <mix key>.json                                       a mix: its sources and their weights
A source key covers the tokenizer, the context length, the held-out share and the content of the source, so what
lies under a key is right by construction; changing a weight or adding a source repacks nothing.

Documents are joined as `tokens </s> tokens </s> ...` and cut every T tokens; only the last window of a source and
split is padded, with <pad>. Text that spells a special token is encoded as plain text, so every <pad> in a window
is padding: the trainer ignores it with `labels = where(window == pad_token_id, -100, window)`.

Shape legend: N windows, T tokens per window (the context length).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, Field, field_validator

from growtx.checked import check_once
from growtx.config import fingerprint, parse_record
from growtx.data.pack_cache import INDEX, HashMemo, PackCache, content_fingerprint, read_index
from growtx.data.sources import DataConfig, Document, SourceConfig, Split, iterate_source
from growtx.data.tokenizer import tokenizer_fingerprint
from growtx.exceptions import DataError, StoreError
from growtx.generator import IntArray, key64, permute, weighted_round_robin

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


# Which windows a global step trains on: a pure function of (seed, step), whatever the number of workers.
#
# Shape legend: B global batch size (windows per step, all workers together).


@dataclass(frozen=True)
class Mix:
    """Sources to sample from: windows of each and its relative weight, in one order.

    Windows of all sources are numbered consecutively: source 0 has 0..num_windows[0]-1, source 1 continues from there.
    """

    num_windows: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.num_windows) == len(self.weights) > 0
        assert all(size > 0 for size in self.num_windows)
        assert all(weight > 0 for weight in self.weights)

    @property
    def shares(self) -> tuple[float, ...]:
        """Weights that sum to one."""
        return tuple(weight / sum(self.weights) for weight in self.weights)


def window_indices(mix: Mix, *, seed: int, step: int, global_batch_size: int, num_samples_before: int = 0) -> IntArray:
    """Windows of global step `step`, as [B] numbers into the mix.

    After n samples of a run every source has had its share of n to within one window per source. A source is
    traversed in a seeded order, a new one in every epoch, so no window repeats before its source is exhausted.

    Args:
        mix: the sources.
        seed: of the run.
        step: counted from 0.
        global_batch_size: windows per step over all workers; each takes its slice of the result.
        num_samples_before: samples that were drawn before step 0, where stages go on with other batch sizes.
    """
    start = num_samples_before + step * global_batch_size
    sources_B, turns_B = weighted_round_robin(np.arange(start, start + global_batch_size), mix.weights)
    sizes = np.array(mix.num_windows)
    offsets = np.cumsum(sizes) - sizes
    windows_B = np.empty(global_batch_size, dtype=np.int64)
    for source, size in enumerate(mix.num_windows):
        rows = np.flatnonzero(sources_B == source)
        epochs, positions = np.divmod(turns_B[rows], size)
        windows_B[rows] = offsets[source] + permute(positions, size, key64(seed, source, epochs))
    # Sources alternate regularly; without this a worker's slice could hold one source only.
    order = permute(np.arange(global_batch_size), global_batch_size, key64(seed, -1, step))
    return windows_B[order]


# Files of token windows: Arrow IPC, one record batch of [num_windows, T] int32, memory-mapped without copying.
#
# Shape legend: N windows, T tokens per window (the context length).


WindowArray = npt.NDArray[np.int32]


class WindowWriter:
    """Streams the tokens of documents into one window file.

    Tokens go to a scratch file first: an Arrow batch states its length before its data, and the length is known
    only at the end. One document is in memory at a time.
    """

    def __init__(self, path: Path, context_length: int, pad_token_id: int) -> None:
        self.path, self.context_length, self.pad_token_id = path, context_length, pad_token_id
        self.num_documents = self.num_tokens = self.num_bytes = 0
        self._digest = hashlib.sha256()
        self._scratch = path.with_suffix(".scratch").open("wb")

    def __enter__(self) -> WindowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.close()

    def write(self, tokens: WindowArray, num_bytes: int) -> None:
        """Append one document of `num_bytes` bytes of text: its tokens, [n] int32."""
        self._append(tokens)
        self.num_documents += 1
        self.num_tokens += tokens.size
        self.num_bytes += num_bytes

    def finish(self) -> dict[str, int | str]:
        """Pad the last window, write the Arrow file and return its entry for an index."""
        self._append(np.full(-self.num_tokens % self.context_length, self.pad_token_id, dtype=np.int32))
        self._scratch.close()
        scratch = Path(self._scratch.name)
        num_windows = -(-self.num_tokens // self.context_length)
        if num_windows:
            with pa.memory_map(str(scratch), "r") as source:
                self._write_arrow(source.read_buffer(), num_windows)
        else:
            self._write_arrow(pa.py_buffer(b""), 0)  # an empty file cannot be mapped
        scratch.unlink()
        return {
            "file": self.path.name,
            "num_windows": num_windows,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "size_bytes": self.path.stat().st_size,
            "sha256": self._digest.hexdigest(),
        }

    def _append(self, tokens: WindowArray) -> None:
        data = tokens.astype("<i4", copy=False).tobytes()
        self._digest.update(data)
        self._scratch.write(data)

    def _write_arrow(self, tokens: pa.Buffer, num_windows: int) -> None:
        flat = pa.Array.from_buffers(pa.int32(), num_windows * self.context_length, [None, tokens])
        windows = pa.FixedSizeListArray.from_arrays(flat, self.context_length)
        batch = pa.record_batch([windows], names=["tokens"])
        with pa.OSFile(str(self.path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)


def map_windows(path: Path) -> WindowArray:
    """The windows of a file: a read-only view [N, T] of the memory-mapped file.

    Raises:
        pyarrow.ArrowException, OSError: not a complete window file.
    """
    with pa.ipc.open_file(pa.memory_map(str(path), "r")) as reader:
        batch = reader.get_batch(0)
    batch.validate()
    column = batch.column(0)
    windows: WindowArray = column.flatten().to_numpy(zero_copy_only=True).reshape(-1, column.type.list_size)
    return windows


def sha256_of_windows(windows: WindowArray, rows_per_chunk: int = 4096) -> str:
    """sha256 of the tokens, as recorded in the index."""
    digest = hashlib.sha256()
    for start in range(0, len(windows), rows_per_chunk):
        digest.update(windows[start : start + rows_per_chunk].astype("<i4", copy=False).tobytes())
    return digest.hexdigest()


# Packing one source: documents in, two window files and an index out. See `packing` for the format.


FORMAT = 1
SPLITS: tuple[Split, Split] = ("train", "validation")
BATCH_CHARACTERS = 1 << 20  # tokenised at once: enough to keep all threads of the tokenizer busy


class SourcePacker:
    """Turns documents into windows of `context_length` tokens.

    Raises:
        DataError: the tokenizer has no <pad> or no </s>.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, context_length: int) -> None:
        if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no padding or no end-of-text token", "Set its pad_token and eos_token")
        assert context_length > 1, "a window of one token predicts nothing"
        self._encoder = _plain_encoder(tokenizer)
        self._end = tokenizer.eos_token_id
        self._made_with: dict[str, Any] = {
            "format": FORMAT,
            "context_length": context_length,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "end_token_id": tokenizer.eos_token_id,
        }

    def key(self, content: str, validation_fraction: float) -> str:
        """Name of the packed form of a source with this content."""
        return fingerprint([self._made_with, content, validation_fraction])

    def fill(self, directory: Path, documents: Iterable[Document]) -> dict[str, Any]:
        """Write `train.arrow` and `validation.arrow` into `directory` and return the index."""
        lowest = 1.0
        with ExitStack() as stack:
            writers = {split: stack.enter_context(self._writer(directory / f"{split}.arrow")) for split in SPLITS}
            for batch in _batches(documents):
                encodings = self._encoder.encode_batch_fast([item.text for item in batch], add_special_tokens=False)
                for document, encoding in zip(batch, encodings, strict=True):
                    tokens = np.array([*encoding.ids, self._end], dtype=np.int32)
                    writers[document.split].write(tokens, document.num_bytes)
                    lowest = min(lowest, document.position)
            files = {split: writer.finish() for split, writer in writers.items()}
        return {**self._made_with, "lowest_position": lowest, "files": files}

    def _writer(self, path: Path) -> WindowWriter:
        return WindowWriter(path, self._made_with["context_length"], self._made_with["pad_token_id"])


def _plain_encoder(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer's backend that neither cuts nor pads and treats special tokens in text as plain text."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document.text)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


PACK_AGAIN = "Rerun the command that packs it"


@dataclass(frozen=True)
class SourceWindows:
    """The windows of one source on one side of the split."""

    source: str
    windows: WindowArray  # [N, T] int32, read-only, memory-mapped
    num_documents: int
    num_tokens: int  # with </s>, without padding
    num_bytes: int  # UTF-8 of the documents
    sha256: str  # of the tokens


@dataclass(frozen=True)
class PackedSplit:
    """Windows of all sources on one side of the split, numbered consecutively in the order of the sources."""

    sources: tuple[SourceWindows, ...]

    def __len__(self) -> int:
        return sum(len(source.windows) for source in self.sources)

    @property
    def num_documents(self) -> int:
        """Documents of all sources."""
        return sum(source.num_documents for source in self.sources)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sources, without padding."""
        return sum(source.num_tokens for source in self.sources)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(source.num_bytes for source in self.sources)

    def take(self, indices: npt.NDArray[np.int64]) -> WindowArray:
        """Copies of the windows with these numbers: [n, T] int32, writable."""
        result = np.empty((len(indices), self.sources[0].windows.shape[1]), dtype=np.int32)
        found = offset = 0
        for source in self.sources:
            rows = np.flatnonzero((indices >= offset) & (indices < offset + len(source.windows)))
            result[rows] = source.windows[indices[rows] - offset]
            found, offset = found + rows.size, offset + len(source.windows)
        assert found == len(indices), f"window numbers must be in 0..{offset - 1}"
        return result


@dataclass(frozen=True)
class PackedData:
    """Packed text of a run: both sides of the split, and what they were made with."""

    path: str  # what `open_packed` takes
    train: PackedSplit
    validation: PackedSplit
    weights: tuple[float, ...]  # one per source
    context_length: int
    tokenizer_fingerprint: str
    pad_token_id: int

    @cached_property
    def mix(self) -> Mix:
        """What `window_indices` samples from: the windows to train on."""
        return Mix(tuple(len(source.windows) for source in self.train.sources), self.weights)

    @property
    def source_fingerprints(self) -> dict[str, str]:
        """sha256 over each source's tokens, by its name: moving or renaming files is no change, another text is."""
        return {
            train.source: fingerprint([train.sha256, validation.sha256])
            for train, validation in zip(self.train.sources, self.validation.sources, strict=True)
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all tokens, weights and the tokenizer: equal means that training sees equal data."""
        tokens = [[source.sha256 for source in split.sources] for split in (self.train, self.validation)]
        return fingerprint([FORMAT, tokens, list(self.mix.shares), self.context_length, self.tokenizer_fingerprint])

    def verify(self) -> None:
        """Hash all tokens again, whatever was checked before.

        Raises:
            DataError: naming the source whose tokens are not as recorded.
        """
        for side, split in zip(SPLITS, (self.train, self.validation), strict=True):
            for source in split.sources:
                if sha256_of_windows(source.windows) != source.sha256:
                    problem = f"Packed data {self.path}: the {side} windows of {source.source!r} are not as recorded"
                    raise DataError(problem, "Delete the cache directory; it will be rebuilt")


def pack(config: DataConfig, tokenizer: PreTrainedTokenizerFast, *, context_length: int, cache_dir: str) -> PackedData:
    """Pack every source that is not in the cache yet, and open the mix.

    Args:
        config: sources, weights and the held-out share; relative paths start at the working directory.
        tokenizer: with <pad> and </s>.
        context_length: tokens per window (T).
        cache_dir: path or fsspec URL; `packed/` is made in it.

    Raises:
        DataError: text is missing or unreadable, nothing is held out or nothing is left, or the disk is full.
    """
    cache = PackCache(f"{cache_dir.rstrip('/')}/packed", _find_problem)
    packer = SourcePacker(tokenizer, context_length)
    memo = HashMemo(cache.local / "content-hashes.json")
    members, indexes = [], []
    for name, source in zip(config.source_names, config.sources, strict=True):
        key = packer.key(content_fingerprint(source, memo), config.validation_fraction)
        directory = cache.entry(key)
        if directory is None:
            directory = cache.build(key, partial(_fill, packer, source, name, config.validation_fraction))
        members.append({"name": name, "weight": source.weight, "key": key})
        indexes.append(read_index(directory))
    _check_sides(indexes, config)
    mix = {"format": FORMAT, "sources": members}
    return open_packed(cache.write_json(f"{fingerprint(mix)}.json", mix))


def _fill(packer: SourcePacker, source: SourceConfig, name: str, fraction: float, directory: Path) -> dict[str, Any]:
    return packer.fill(directory, iterate_source(source, name, fraction))


def _check_sides(indexes: list[dict[str, Any]], config: DataConfig) -> None:
    """Every source needs a window to train on, and the mix one to measure on."""
    for name, index in zip(config.source_names, indexes, strict=True):
        if not index["files"]["train"]["num_windows"]:
            problem = f"All {index['files']['validation']['num_documents']} documents of source {name!r} are held out"
            raise DataError(problem, "Give it more documents or lower data.validation_fraction")
    if not any(index["files"]["validation"]["num_windows"] for index in indexes):
        num_documents = sum(index["files"]["train"]["num_documents"] for index in indexes)
        enough = min(index["lowest_position"] for index in indexes) * 1.01 + 0.001
        raise DataError(
            f"None of {num_documents} documents is held out by data.validation_fraction={config.validation_fraction}",
            f"Raise it to {enough:.3f} or more, or add documents",
        )


def open_packed(path: str) -> PackedData:
    """Memory-map packed data; `path` is `PackedData.path`. What lies elsewhere is copied to this node first.

    Raises:
        DataError: missing or damaged.
    """
    members = _read_mix(path).sources
    cache = PackCache(path.rpartition("/")[0], _find_problem)
    directories = [cache.entry(member.key) for member in members]
    if None in directories:
        missing = members[directories.index(None)].key
        raise DataError(f"Packed data {cache.root}/{missing} is missing or damaged", PACK_AGAIN)
    found = [directory for directory in directories if directory is not None]
    indexes = [_read_index(directory) for directory in found]
    return PackedData(
        path=path,
        train=_open_split("train", found, indexes, members),
        validation=_open_split("validation", found, indexes, members),
        weights=tuple(member.weight for member in members),
        context_length=indexes[0].context_length,
        tokenizer_fingerprint=indexes[0].tokenizer_fingerprint,
        pad_token_id=indexes[0].pad_token_id,
    )


def _open_split(
    split: Split, directories: Sequence[Path], indexes: Sequence[SourceIndex], members: Sequence[MixMember]
) -> PackedSplit:
    sources = []
    for directory, index, member in zip(directories, indexes, members, strict=True):
        entry = index.files[split]
        path = directory / entry.file
        try:
            windows = map_windows(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"Packed data {path} is damaged", f"Delete {directory}; it will be rebuilt") from error
        if windows.shape != (entry.num_windows, indexes[0].context_length):
            raise DataError(f"Packed data {path} is not what its index says", f"Delete {directory}")
        counts = entry.model_dump(include={"num_documents", "num_tokens", "num_bytes", "sha256"})
        sources.append(SourceWindows(source=member.name, windows=windows, **counts))
    return PackedSplit(tuple(sources))


# What the two kinds of JSON files hold. A key is the name of a directory, so it may be nothing but a hash.


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class MixMember(BaseModel):
    """A source of a mix."""

    name: str
    weight: float = Field(gt=0, allow_inf_nan=False)
    key: Sha256


class MixFile(BaseModel):
    """`<mix key>.json`."""

    sources: tuple[MixMember, ...] = Field(min_length=1)


class SplitIndex(BaseModel):
    """One side of the split of a source."""

    file: Literal["train.arrow", "validation.arrow"]
    num_windows: Count
    num_documents: Count
    num_tokens: Count
    num_bytes: Count
    size_bytes: Count
    sha256: Sha256


class SourceIndex(BaseModel):
    """`<source key>/index.json`."""

    context_length: int = Field(gt=1)
    tokenizer_fingerprint: str
    pad_token_id: Count
    files: dict[Split, SplitIndex]

    @field_validator("files")
    @classmethod
    def _has_both_sides(cls, files: dict[Split, SplitIndex]) -> dict[Split, SplitIndex]:
        if set(files) != set(SPLITS):
            raise ValueError("a side of the split is missing")
        return files


def _find_problem(directory: Path, force: bool) -> str | None:
    """What is wrong with the packed form of a source, by the hashes of its tokens; asked once on every node."""
    try:
        index = _read_index(directory)
        for entry in index.files.values():
            path, shape = directory / entry.file, (entry.num_windows, index.context_length)
            problem = check_once(path, entry.sha256, partial(_windows_problem, path, shape, entry.sha256), force=force)
            if problem is not None:
                return problem
    except DataError as error:
        return error.problem
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def _windows_problem(path: Path, shape: tuple[int, int], sha256: str) -> str | None:
    try:
        windows = map_windows(path)
    except (pa.ArrowException, OSError, ValueError, LookupError, AttributeError, TypeError):
        return f"{path.name} is not a file of windows"
    if windows.shape != shape or sha256_of_windows(windows) != sha256:
        return f"{path.name} does not hold the tokens that were written"
    return None


def _read_mix(path: str) -> MixFile:
    try:
        with fsspec.open(path, "rb") as handle:
            return parse_record(MixFile, handle.read(), path, PACK_AGAIN)
    except OSError as error:
        raise DataError(f"There is no packed data {path}", PACK_AGAIN) from error
    except StoreError as error:
        raise DataError(error.problem, error.remedy) from error


def _read_index(directory: Path) -> SourceIndex:
    path = directory / INDEX
    try:
        return parse_record(SourceIndex, path.read_bytes(), str(path), f"Delete {directory}; it will be rebuilt")
    except StoreError as error:
        raise DataError(error.problem, error.remedy) from error
