"""Packing: documents become windows of tokens once, and every worker memory-maps them ever after.

`<cache_dir>/packed/` holds
    <source key>/{train,validation}.arrow, index.json    one source, whatever mixes it takes part in
    <mix key>.json                                       a mix: its sources and their weights
A source key covers the tokenizer, the context length, the held-out share and the content of the source, so what
lies under a key is right by construction; changing a weight or adding a source packs nothing again.

Documents are joined as `tokens </s> tokens </s> ...` and cut every T tokens; only the last window of a source and
split is padded, with <pad>. Text that spells a special token is encoded as plain text, so every <pad> in a window
is padding: the trainer ignores it with `labels = where(window == pad_token_id, -100, window)`.

Shape legend: N windows, T tokens per window (the context length).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from growtx.config import fingerprint
from growtx.data.content import HashMemo, content_fingerprint
from growtx.data.pack_cache import PackCache, read_index
from growtx.data.pack_source import FORMAT, SPLITS, SourcePacker
from growtx.data.sampling import Mix
from growtx.data.sources import DataConfig, SourceConfig, Split, iterate_source
from growtx.data.window_files import WindowArray, map_windows, sha256_of_windows
from growtx.exceptions import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACK_AGAIN = "Run the command that packs it again"


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
    """Windows of all sources on one side of the split, numbered through in the order of the sources."""

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

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all tokens, weights and the tokenizer: equal means that training sees equal data."""
        tokens = [[source.sha256 for source in split.sources] for split in (self.train, self.validation)]
        return fingerprint([FORMAT, tokens, list(self.mix.shares), self.context_length, self.tokenizer_fingerprint])

    def verify(self) -> None:
        """Hash all tokens again. Raises DataError naming the source whose tokens are not as recorded."""
        for side, split in zip(SPLITS, (self.train, self.validation), strict=True):
            for source in split.sources:
                if sha256_of_windows(source.windows) != source.sha256:
                    problem = f"Packed data {self.path}: the {side} windows of {source.source!r} are not as recorded"
                    raise DataError(problem, "Delete the cache directory; it is made again")


def pack(config: DataConfig, tokenizer: PreTrainedTokenizerFast, *, context_length: int, cache_dir: str) -> PackedData:
    """Pack every source that is not in the cache yet, and open the mix.

    Args:
        config: sources, weights and the held-out share; relative paths start at the working directory.
        tokenizer: with <pad> and </s>.
        context_length: tokens per window (T).
        cache_dir: path or fsspec URL; `packed/` is made in it.

    Raises:
        DataError: text that is missing or not readable, nothing held out or nothing left, no space on the disk.
    """
    cache = PackCache(f"{cache_dir.rstrip('/')}/packed")
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
    try:
        with fsspec.open(path, "r", encoding="utf-8") as handle:
            members = json.load(handle)["sources"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"There is no packed data {path}", PACK_AGAIN) from error
    cache = PackCache(path.rpartition("/")[0])
    directories = [cache.entry(member["key"]) for member in members]
    if None in directories:
        missing = members[directories.index(None)]["key"]
        raise DataError(f"Packed data {cache.root}/{missing} is missing or damaged", PACK_AGAIN)
    found = [directory for directory in directories if directory is not None]
    names = [member["name"] for member in members]
    index = read_index(found[0])
    return PackedData(
        path=path,
        train=_open_split("train", found, names),
        validation=_open_split("validation", found, names),
        weights=tuple(member["weight"] for member in members),
        context_length=index["context_length"],
        tokenizer_fingerprint=index["tokenizer_fingerprint"],
        pad_token_id=index["pad_token_id"],
    )


def _open_split(split: Split, directories: list[Path], names: list[str]) -> PackedSplit:
    sources = []
    for directory, name in zip(directories, names, strict=True):
        entry = read_index(directory)["files"][split]
        path = directory / entry["file"]
        try:
            windows = map_windows(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"Packed data {path} is damaged", f"Delete {directory}; it is made again") from error
        counts = {count: entry[count] for count in ("num_documents", "num_tokens", "num_bytes", "sha256")}
        sources.append(SourceWindows(source=name, windows=windows, **counts))
    return PackedSplit(tuple(sources))
