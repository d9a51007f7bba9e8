"""Packed data: documents as windows of tokens, made once by `packing_job`, memory-mapped by every worker from then on.

`<cache_dir>/packed/` holds
    <key>/{train,validation}.arrow, index.json    a shard: a source, or the part of a large one that a shard holds
    <mix key>.json                                a mix: its sources, their weights and their shards
A key covers the tokenizer, the context length, the held-out share and the content of what is packed, so what lies
under a key is right by construction; changing a weight or adding a source repacks nothing.

Documents are joined as `tokens </s> tokens </s> ...` and cut every T tokens; only the last window of a shard and
split is padded, with <pad>. Text that spells a special token is encoded as plain text, so every <pad> in a window
is padding: the trainer ignores it with `labels = where(window == pad_token_id, -100, window)`.

Shape legend: N windows, T tokens per window (the context length).
"""

from __future__ import annotations

import hashlib
import mmap
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, Field, field_validator, model_validator

from growtx.checked import check_once
from growtx.config import fingerprint, parse_record
from growtx.data.pack_cache import INDEX, PackCache
from growtx.data.sources import Split
from growtx.exceptions import DataError, StoreError
from growtx.generator import IntArray, key64, permute, weighted_round_robin

FORMAT = 1  # of a shard
FORMAT_OF_MANY = 2  # of a mix with a source of several shards
SPLITS: tuple[Split, Split] = ("train", "validation")

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
    shard_sizes: tuple[tuple[int, ...], ...] = ()  # windows of each source's shards; none: every source is one shard

    def __post_init__(self) -> None:
        assert len(self.num_windows) == len(self.weights) > 0
        assert all(size > 0 for size in self.num_windows)
        assert all(weight >= 0 for weight in self.weights) and any(self.weights)
        assert not self.shard_sizes or tuple(map(sum, self.shard_sizes)) == self.num_windows

    @property
    def shares(self) -> tuple[float, ...]:
        """Weights that sum to one."""
        return tuple(weight / sum(self.weights) for weight in self.weights)


def window_indices(
    mix: Mix,
    *,
    seed: int,
    step: int,
    global_batch_size: int,
    num_samples_before: int = 0,
    turns_before: Sequence[int] = (),
) -> IntArray:
    """Windows of global step `step`, as [B] numbers into the mix.

    After n samples of a run every source has had its share of n to within one window per source. A source is
    traversed in a seeded order, a new one in every epoch, so no window repeats before its source is exhausted. Of a
    source of many shards, windows are mixed within groups of them, so that a node needs few shards at a time.

    Args:
        mix: the sources.
        seed: of the run.
        step: counted from 0.
        global_batch_size: windows per step over all workers; each takes its slice of the result.
        num_samples_before: samples that were drawn before step 0, where stages go on with other batch sizes.
        turns_before: windows of each source that were drawn before all that, by another mix.
    """
    start = num_samples_before + step * global_batch_size
    windows_B = windows_drawn(mix, seed=seed, start=start, count=global_batch_size, turns_before=turns_before)
    # Sources alternate regularly; without this a worker's slice could hold one source only.
    order = permute(np.arange(global_batch_size), global_batch_size, key64(seed, -1, step))
    return windows_B[order]


def windows_drawn(mix: Mix, *, seed: int, start: int, count: int, turns_before: Sequence[int] = ()) -> IntArray:
    """Windows of `count` samples of a run from sample `start` on, whatever the batches that they form."""
    sources, turns = weighted_round_robin(np.arange(start, start + count), mix.weights)
    sizes = np.array(mix.num_windows)
    offsets = np.cumsum(sizes) - sizes
    if turns_before:
        turns = turns + np.array(turns_before)[sources]
    windows = np.empty(count, dtype=np.int64)
    for source, size in enumerate(mix.num_windows):
        rows = np.flatnonzero(sources == source)
        epochs, positions = np.divmod(turns[rows], size)
        shards = mix.shard_sizes[source] if mix.shard_sizes else (size,)
        windows[rows] = offsets[source] + _places(positions, epochs, np.array(shards), seed, source)
    return windows


SHARDS_IN_A_GROUP = 8


def _places(positions: IntArray, epochs: IntArray, sizes: IntArray, seed: int, source: int) -> IntArray:
    """Which window of a source has its turn at each position of each epoch."""
    if len(sizes) <= SHARDS_IN_A_GROUP:
        return permute(positions, int(sizes.sum()), key64(seed, source, epochs))
    places = np.empty_like(positions)
    firsts = np.cumsum(sizes) - sizes
    for epoch in np.unique(epochs):
        order = permute(np.arange(len(sizes)), len(sizes), key64(seed, source, epoch, -1))
        ends = np.cumsum(sizes[order])
        group_ends = ends[[*range(SHARDS_IN_A_GROUP - 1, len(ends) - 1, SHARDS_IN_A_GROUP), len(ends) - 1]]
        rows = np.flatnonzero(epochs == epoch)
        groups = np.searchsorted(group_ends, positions[rows], side="right")
        for group in np.unique(groups):
            mine = rows[groups == group]
            start = int(group_ends[group - 1]) if group else 0
            keys = key64(seed, source, epoch, int(group))
            turns = start + permute(positions[mine] - start, int(group_ends[group]) - start, keys)
            shards = np.searchsorted(ends, turns, side="right")
            places[mine] = firsts[order[shards]] + turns - (ends - sizes[order])[shards]
    return places


# Files of token windows: Arrow IPC, one record batch of [num_windows, T] int32, memory-mapped without copying.
#
# Shape legend: N windows, T tokens per window (the context length).


WindowArray = npt.NDArray[np.int32]


class WindowWriter:
    """Streams the tokens of documents into one window file.

    An Arrow file states its length before its data, and the length is known only at the end: room for what stands
    before is left, and filled when the file is finished. Nothing is kept in memory, and nothing written twice.
    """

    def __init__(self, path: Path, context_length: int, pad_token_id: int) -> None:
        self.path, self.context_length, self.pad_token_id = path, context_length, pad_token_id
        self.num_documents = self.num_tokens = self.num_bytes = 0
        self._digest = hashlib.sha256()
        self._file = path.open("wb")
        self._file.write(bytes(len(_arrow_frame(1, context_length)[0])))

    def __enter__(self) -> WindowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, tokens: WindowArray, num_bytes: int) -> None:
        """Append one document of `num_bytes` bytes of text: its tokens, [n] int32."""
        self._append(tokens)
        self.num_documents += 1
        self.num_tokens += tokens.size
        self.num_bytes += num_bytes

    def finish(self) -> dict[str, int | str]:
        """Pad the last window, complete the Arrow file and return its entry for an index."""
        self._append(np.full(-self.num_tokens % self.context_length, self.pad_token_id, dtype=np.int32))
        num_windows = -(-self.num_tokens // self.context_length)
        before, after = _arrow_frame(num_windows, self.context_length)
        if num_windows == 0:
            self._file.truncate(0)
        self._file.write(after)
        self._file.seek(0)
        self._file.write(before)
        self._file.close()
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
        self._file.write(data)


def _arrow_frame(num_windows: int, context_length: int) -> tuple[bytes, bytes]:
    """What the Arrow file of so many windows has before their tokens and after them."""
    size = 4 * num_windows * context_length
    tokens = pa.py_buffer(mmap.mmap(-1, size) if size else b"")  # addresses that nobody reads: no memory
    flat = pa.Array.from_buffers(pa.int32(), num_windows * context_length, [None, tokens])
    windows = pa.FixedSizeListArray.from_arrays(flat, context_length)
    batch = pa.record_batch([windows], names=["tokens"])
    sink = _FrameSink(tokens.address if size else -1)
    with pa.PythonFile(sink, mode="w") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.before), bytes(sink.after)


class _FrameSink:
    """A file that keeps all but the tokens."""

    closed = False

    def __init__(self, address: int) -> None:
        self.before, self.after = bytearray(), bytearray()
        self._address, self._position, self._is_after = address, 0, False

    def write(self, data: Any) -> int:
        size = data.size if isinstance(data, pa.Buffer) else len(data)
        if isinstance(data, pa.Buffer) and data.address == self._address:
            self._is_after = True
        else:
            (self.after if self._is_after else self.before).extend(memoryview(data))
        self._position += size
        return int(size)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None: ...

    def close(self) -> None: ...


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


# Many files as one sequence of windows.


MAPS_AT_ONCE = 256  # open files of a process, of which systems allow as few as 1,024


@dataclass(frozen=True)
class Shard:
    """One side of the split of one shard, on this node or fetched when it is needed."""

    key: str
    num_windows: int
    sha256: str
    size_bytes: int


class ShardedWindows:
    """The windows of all shards of a source and side: looks like [N, T] int32, read-only."""

    dtype = np.dtype(np.int32)

    def __init__(self, cache: PackCache, split: Split, shards: Sequence[Shard], context_length: int) -> None:
        self.shards = tuple(shards)
        self._cache, self._split = cache, split
        self._ends = np.cumsum([shard.num_windows for shard in shards], dtype=np.int64)
        self.shape = (int(self._ends[-1]) if len(shards) else 0, context_length)
        self._maps: OrderedDict[int, WindowArray] = OrderedDict()
        self._asked_for: tuple[int, ...] = ()  # the last ones, which need not be asked for again
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetches-shards")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | IntArray) -> WindowArray:
        """Copies of windows."""
        return self.take(np.arange(len(self))[rows] if isinstance(rows, slice) else rows)

    def take(self, rows: IntArray) -> WindowArray:
        """Copies of the windows with these numbers: [n, T] int32, writable."""
        result = np.empty((len(rows), self.shape[1]), dtype=np.int32)
        owners = self._owners(rows)
        for number in np.unique(owners):
            mine = np.flatnonzero(owners == number)
            first = int(self._ends[number]) - self.shards[number].num_windows
            result[mine] = self._windows_of(int(number))[rows[mine] - first]
        return result

    @property
    def is_fetched(self) -> bool:
        """Whether the shards lie elsewhere, and are copied to this node when they are needed."""
        return not self._cache.is_local

    def prefetch(self, rows: IntArray) -> None:
        """Begin to fetch the shards that hold these windows."""
        for number in np.unique(self._owners(rows)).tolist():
            if number not in self._asked_for:
                self._asked_for = (*self._asked_for[1 - SHARDS_IN_A_GROUP :], number)
                self._fetcher.submit(self._cache.entry, self.shards[number].key, False)

    def problem(self) -> str | None:
        """What is wrong with the content of the shards, all of which are read; None: nothing."""
        for number, shard in enumerate(self.shards):
            if sha256_of_windows(self._windows_of(number)) != shard.sha256:
                return f" in its shard {shard.key}"
        return None

    def _owners(self, rows: IntArray) -> IntArray:
        return np.searchsorted(self._ends, rows, side="right")

    def _windows_of(self, number: int) -> WindowArray:
        if number in self._maps:
            self._maps.move_to_end(number)
            return self._maps[number]
        shard = self.shards[number]
        directory = self._cache.entry(shard.key, False)
        if directory is None:
            raise DataError(f"Packed data {self._cache.root}/{shard.key} is missing or damaged", PACK_AGAIN)
        windows = _mapped(directory, f"{self._split}.arrow", (shard.num_windows, self.shape[1]))
        if self._cache.local_bytes is None:  # otherwise what another process removes would stay on the disk
            self._maps[number] = windows
            if len(self._maps) > MAPS_AT_ONCE:
                self._maps.popitem(last=False)
        return windows


def _mapped(directory: Path, name: str, shape: tuple[int, int]) -> WindowArray:
    path = directory / name
    try:
        windows = map_windows(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"Packed data {path} is damaged", f"Delete {directory}; it will be rebuilt") from error
    if windows.shape != shape:
        raise DataError(f"Packed data {path} is not what its index says", f"Delete {directory}; it will be rebuilt")
    return windows


PACK_AGAIN = "Rerun the command that packs it"


@dataclass(frozen=True)
class SourceWindows:
    """The windows of one source on one side of the split."""

    source: str
    windows: WindowArray | ShardedWindows  # [N, T] int32, read-only, memory-mapped
    num_documents: int
    num_tokens: int  # with </s>, without padding
    num_bytes: int  # UTF-8 of the documents
    sha256: str  # of the tokens; of many shards, over those of each

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Windows of each shard."""
        if isinstance(self.windows, ShardedWindows):
            return tuple(shard.num_windows for shard in self.windows.shards)
        return (len(self.windows),)


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

    @property
    def is_fetched(self) -> bool:
        """Whether some of it lies elsewhere, and is copied to this node when it is needed."""
        return any(isinstance(source.windows, ShardedWindows) and source.windows.is_fetched for source in self.sources)

    def prefetch(self, indices: npt.NDArray[np.int64]) -> None:
        """Begin to fetch what holds the windows with these numbers, where it lies elsewhere."""
        offset = 0
        for source in self.sources:
            if isinstance(source.windows, ShardedWindows):
                mine = indices[(indices >= offset) & (indices < offset + len(source.windows))]
                source.windows.prefetch(mine - offset)
            offset += len(source.windows)


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
        sizes = tuple(source.shard_sizes for source in self.train.sources)
        return Mix(tuple(map(sum, sizes)), self.weights, sizes)

    def mix_of(self, weights: Mapping[str, float] | None) -> Mix:
        """The mix with other weights of its sources, by name; those left out give nothing. None: its own."""
        if weights is None:
            return self.mix
        return replace(self.mix, weights=tuple(weights.get(source.source, 0.0) for source in self.train.sources))

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
                if (damaged := _damaged(source)) is not None:
                    problem = f"Packed data {self.path}: the {side} windows of {source.source!r} are not as recorded"
                    raise DataError(f"{problem}{damaged}", "Delete them; they are packed again when a run needs them")


def _damaged(source: SourceWindows) -> str | None:
    """Where the content of a source is not what was written, as the end of a sentence; None: nowhere."""
    if isinstance(source.windows, ShardedWindows):
        return source.windows.problem()
    return None if sha256_of_windows(source.windows) == source.sha256 else ""


def open_packed(path: str, local_bytes: int | None = None) -> PackedData:
    """Memory-map packed data; `path` is `PackedData.path`. What lies elsewhere is copied to this node.

    A source of one shard is copied and proven now; of many shards each when it is needed, and then by its size alone.

    Args:
        local_bytes: how much of what lies elsewhere this node keeps at once; None: all that it has read.

    Raises:
        DataError: missing or damaged.
    """
    mix = read_mix(path)
    cache = PackCache(path.rpartition("/")[0], find_problem, local_bytes=local_bytes)
    opened = [_open_source(member, mix, cache) for member in mix.sources]
    made_with = mix if mix.context_length is not None else _read_index(cache.local / mix.sources[0].keys[0])
    assert made_with.context_length and made_with.tokenizer_fingerprint and made_with.pad_token_id is not None
    return PackedData(
        path=path,
        train=PackedSplit(tuple(source["train"] for source in opened)),
        validation=PackedSplit(tuple(source["validation"] for source in opened)),
        weights=tuple(member.weight for member in mix.sources),
        context_length=made_with.context_length,
        tokenizer_fingerprint=made_with.tokenizer_fingerprint,
        pad_token_id=made_with.pad_token_id,
    )


def _open_source(member: MixMember, mix: MixFile, cache: PackCache) -> dict[Split, SourceWindows]:
    if member.shards:
        assert mix.context_length is not None
        return {split: _open_shards(split, member, mix.context_length, cache) for split in SPLITS}
    directory = cache.entry(member.keys[0])
    if directory is None:
        raise DataError(f"Packed data {cache.root}/{member.keys[0]} is missing or damaged", PACK_AGAIN)
    index = _read_index(directory)
    opened: dict[Split, SourceWindows] = {}
    for split in SPLITS:
        entry = index.files[split]
        windows = _mapped(directory, entry.file, (entry.num_windows, index.context_length))
        counts = entry.model_dump(include={"num_documents", "num_tokens", "num_bytes", "sha256"})
        opened[split] = SourceWindows(source=member.name, windows=windows, **counts)
    return opened


def _open_shards(split: Split, member: MixMember, context_length: int, cache: PackCache) -> SourceWindows:
    shards = member.shards[: member.num_train_shards if split == "train" else member.num_validation_shards]
    entries = [shard.files[split] for shard in shards]
    for shard in shards:
        if cache.is_local and cache.problem(cache.local / shard.key, hashed=False) is not None:
            raise DataError(f"Packed data {cache.root}/{shard.key} is missing or damaged", PACK_AGAIN)
    places = [
        Shard(shard.key, entry.num_windows, entry.sha256, entry.size_bytes)
        for shard, entry in zip(shards, entries, strict=True)
    ]
    return SourceWindows(
        source=member.name,
        windows=ShardedWindows(cache, split, places, context_length),
        num_documents=sum(entry.num_documents for entry in entries),
        num_tokens=sum(entry.num_tokens for entry in entries),
        num_bytes=sum(entry.num_bytes for entry in entries),
        sha256=fingerprint([entry.sha256 for entry in entries]),
    )


# What the two kinds of JSON files hold. A key is the name of a directory, so it may be nothing but a hash.


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class SplitIndex(BaseModel):
    """One side of the split of a shard."""

    file: Literal["train.arrow", "validation.arrow"]
    num_windows: Count
    num_documents: Count
    num_tokens: Count
    num_bytes: Count
    size_bytes: Count
    sha256: Sha256


class _BothSides(BaseModel):
    files: dict[Split, SplitIndex]

    @field_validator("files")
    @classmethod
    def _has_both_sides(cls, files: dict[Split, SplitIndex]) -> dict[Split, SplitIndex]:
        if set(files) != set(SPLITS):
            raise ValueError("a side of the split is missing")
        return files


class ShardEntry(_BothSides):
    """A shard as a mix names it."""

    key: Sha256


class SourceIndex(_BothSides):
    """`<key>/index.json`.

    Attributes:
        lowest_position: of all documents; see `held_out_position`.
        has_more: whether the part of the source that this shard begins or goes on has another shard after it.
        dropped: rows that are in no window, by reason.
    """

    context_length: int = Field(gt=1)
    tokenizer_fingerprint: str
    pad_token_id: Count
    lowest_position: float = 1.0
    has_more: bool = False
    dropped: dict[str, Count] = Field(default_factory=dict)


class MixMember(BaseModel):
    """A source of a mix: one shard by its key, or several. Of these, each side of the split has the first ones."""

    name: str
    weight: float = Field(gt=0, allow_inf_nan=False)
    key: Sha256 | None = None
    shards: tuple[ShardEntry, ...] = ()
    num_train_shards: Count = 0
    num_validation_shards: Count = 0

    @model_validator(mode="after")
    def _one_or_many(self) -> MixMember:
        if (self.key is None) != bool(self.shards):
            raise ValueError("a source has either a key or shards")
        if max(self.num_train_shards, self.num_validation_shards) > len(self.shards):
            raise ValueError("fewer shards than are counted")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its shards."""
        return (self.key,) if self.key is not None else tuple(shard.key for shard in self.shards)


class MixFile(BaseModel):
    """`<mix key>.json`."""

    sources: tuple[MixMember, ...] = Field(min_length=1)
    context_length: int | None = Field(None, gt=1)
    tokenizer_fingerprint: str | None = None
    pad_token_id: Count | None = None

    @model_validator(mode="after")
    def _says_what_shards_are(self) -> MixFile:
        made_with = (self.context_length, self.tokenizer_fingerprint, self.pad_token_id)
        if None in made_with and any(member.shards for member in self.sources):
            raise ValueError("nothing says what the shards were made with")
        return self


def find_problem(directory: Path, force: bool) -> str | None:
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


def read_mix(path: str) -> MixFile:
    """The description of a mix.

    Raises:
        DataError: missing or damaged.
    """
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
