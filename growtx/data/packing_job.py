"""Packing: text becomes windows once, in the driver where there is little of it, else on all CPUs of the cluster.

A source is divided into parts (`sources.divide`), a part is packed into shards by one task, and a shard is complete or
absent. What is packed is a function of the text and the tokenizer alone: the shards of a source, in the order of its
parts, are one sequence, and a plan uses the shortest beginning of it that has enough windows. So neither the number of
CPUs nor the order in which tasks end shows in it, and a job that dies goes on with the first shard that is missing.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from growtx.compat.ray import is_connected
from growtx.config import fingerprint
from growtx.data.pack_cache import HashMemo, PackCache, content_fingerprint, read_index
from growtx.data.packing import (
    FORMAT,
    FORMAT_OF_MANY,
    SPLITS,
    MixMember,
    PackedData,
    WindowWriter,
    find_problem,
    open_packed,
    read_mix,
)
from growtx.data.sources import (
    DataConfig,
    Document,
    Dropped,
    Part,
    SourceConfig,
    divide,
    iterate_part,
    no_text,
    text_key,
)
from growtx.data.tokenizer import Encoder, encoder_definition, tokenizer_fingerprint
from growtx.exceptions import DataError, GrowtxError
from growtx.formatting import duration, plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

BATCH_CHARACTERS = 1 << 20  # tokenised at once
PARTS_TO_TRY = 2  # a CPU, before it is known how many windows a part gives


# One part: documents in, shards out.


@dataclass(frozen=True)
class SourcePacker:
    """Turns documents into windows of `context_length` tokens; the same in every process that gets a copy."""

    definition: str  # of the tokenizer
    made_with: dict[str, Any]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, context_length: int) -> SourcePacker:
        """Raises DataError: the tokenizer has no <pad> or no </s>."""
        if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no padding or no end-of-text token", "Set its pad_token and eos_token")
        assert context_length > 1, "a window of one token predicts nothing"
        made_with = {
            "format": FORMAT,
            "context_length": context_length,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "end_token_id": tokenizer.eos_token_id,
        }
        return cls(encoder_definition(tokenizer), made_with)

    def key(self, content: str, validation_fraction: float) -> str:
        """Name of the packed form of a source, or of a part of one, with this content."""
        return fingerprint([self.made_with, content, validation_fraction])

    def fill(self, directory: Path, documents: Documents, shard_bytes: int) -> dict[str, Any]:
        """Write `train.arrow` and `validation.arrow` of one shard into `directory` and return its index."""
        lowest, encoder = 1.0, _encoder(self.definition)
        end = np.array([self.made_with["end_token_id"]], dtype=np.int32)
        with ExitStack() as stack:
            writers = {split: stack.enter_context(self._writer(directory / f"{split}.arrow")) for split in SPLITS}
            for batch in _batches(documents.shard(shard_bytes)):
                for document, tokens in zip(batch, encoder.encode([item.text for item in batch]), strict=True):
                    writers[document.split].write(np.concatenate([tokens, end]), document.num_bytes)
                    lowest = min(lowest, document.position)
            has_more = documents.has_more()
            files = {split: writer.finish() for split, writer in writers.items()}
        found = {"lowest_position": lowest, "files": files, "has_more": has_more, "dropped": documents.dropped()}
        return {**self.made_with, **found}

    def _writer(self, path: Path) -> WindowWriter:
        return WindowWriter(path, self.made_with["context_length"], self.made_with["pad_token_id"])


@cache
def _encoder(definition: str) -> Encoder:
    """Kept by a process from part to part, with all the pieces of text that it knows."""
    return Encoder(definition)


class Documents:
    """The documents of a part, shard by shard."""

    def __init__(self, documents: Iterator[Document], dropped: Dropped) -> None:
        self._documents, self._dropped = documents, dropped
        self._next: Document | None = None
        self._reported: Counter[str] = Counter()

    def shard(self, num_bytes: int) -> Iterator[Document]:
        """Documents until so many bytes of text are reached."""
        taken = 0
        while taken < num_bytes and self.has_more():
            document, self._next = self._next, None
            assert document is not None
            taken += document.num_bytes
            yield document

    def has_more(self) -> bool:
        if self._next is None:
            self._next = next(self._documents, None)
        return self._next is not None

    def skip(self, number: int) -> None:
        """Leave out documents that are packed already."""
        while number and self.has_more():
            self._next = None
            number -= 1
        self.dropped()

    def dropped(self) -> dict[str, int]:
        """Rows that were dropped since this was last asked, by reason."""
        new = self._dropped.counts - self._reported
        self._reported = Counter(self._dropped.counts)
        return dict(new)


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


@dataclass(frozen=True)
class PartTask:
    """What a process needs to know to pack one part.

    Attributes:
        key: of its first shard.
        duplicates: numbers of its documents that are left out, or None.
    """

    cache_root: str
    local_bytes: int | None
    source: SourceConfig
    name: str
    validation_fraction: float
    part: Part
    key: str
    duplicates: npt.NDArray[np.int64] | None = None

    @property
    def cache(self) -> PackCache:
        return PackCache(self.cache_root, find_problem, local_bytes=self.local_bytes)

    def without(self, duplicates: npt.NDArray[np.int64]) -> PartTask:
        key = fingerprint([self.key, hashlib.sha256(duplicates.astype("<i8").tobytes()).hexdigest()])
        return replace(self, key=key, duplicates=duplicates)

    def documents(self) -> Documents:
        dropped = Dropped()
        left_out = frozenset() if self.duplicates is None else frozenset(self.duplicates.tolist())
        found = iterate_part(
            self.source, self.name, self.validation_fraction, self.part, dropped=dropped, left_out=left_out
        )
        return Documents(found, dropped)


PackedShard = tuple[str, dict[str, Any]]  # key and index


def finished_shards(task: PartTask, cache: PackCache, *, hashed: bool = False) -> Iterator[PackedShard]:
    """Shards of a part that are packed already, up to the first that is not."""
    for number in itertools.count():
        key = _shard_key(task.key, number)
        if (index := _known(cache, key, hashed)) is None:
            return
        yield key, index
        if not index.get("has_more", False):
            return


def pack_part(packer: SourcePacker, task: PartTask, *, hashed: bool = False) -> Iterator[PackedShard]:
    """All shards of a part, in order; those that are there are not made again.

    Raises:
        DataError: its text cannot be read, or the disk is full. Finished shards are kept.
    """
    cache, documents, num_before = task.cache, None, 0
    for number in itertools.count():
        key = _shard_key(task.key, number)
        if (index := _known(cache, key, hashed)) is None:
            if documents is None:
                documents = task.documents()
                documents.skip(num_before)
            fill = partial(packer.fill, documents=documents, shard_bytes=task.part.shard_bytes)
            index = read_index(cache.build(key, fill))
        else:
            num_documents = sum(entry["num_documents"] for entry in index["files"].values())
            num_before += num_documents
            if documents is not None:
                documents.skip(num_documents)
        yield key, index
        if not index.get("has_more", False):
            return


def _known(cache: PackCache, key: str, hashed: bool) -> dict[str, Any] | None:
    """The index of a shard that is there; with `hashed`, only where it holds what was written."""
    return None if hashed and cache.entry(key) is None else cache.index(key)


def _shard_key(first: str, number: int) -> str:
    return first if number == 0 else fingerprint([first, number])


# Exact duplicates: a hash of every document, read in a first pass; the earliest document of each hash stays.


HASHES = "hashes.npy"


def hash_part(task: PartTask) -> npt.NDArray[np.uint64]:
    """A hash of each document of a part, made once."""
    cache = PackCache(task.cache_root, local_bytes=task.local_bytes)
    directory = cache.entry(fingerprint([task.key, HASHES]))
    if directory is None:
        directory = cache.build(fingerprint([task.key, HASHES]), partial(_write_hashes, task))
    hashes: npt.NDArray[np.uint64] = np.load(directory / HASHES)
    return hashes


def _write_hashes(task: PartTask, directory: Path) -> dict[str, Any]:
    documents = iterate_part(task.source, task.name, task.validation_fraction, task.part)
    hashes = np.fromiter((text_key(document.text) for document in documents), dtype=np.uint64)
    np.save(directory / HASHES, hashes)
    return {"files": {"hashes": {"file": HASHES, "size_bytes": (directory / HASHES).stat().st_size}}}


class Seen:
    """Hashes of all documents before, eight bytes each."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, dtype=np.uint64)

    def duplicates(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Numbers of the documents that were there before; all of them count as seen from now on."""
        _, firsts = np.unique(hashes, return_index=True)
        is_first = np.zeros(hashes.size, dtype=bool)
        is_first[firsts] = True
        places = np.searchsorted(self._hashes, hashes)
        known = np.zeros(hashes.size, dtype=bool)
        inside = places < self._hashes.size
        known[inside] = self._hashes[places[inside]] == hashes[inside]
        new = hashes[is_first & ~known]
        self._hashes = np.sort(np.concatenate([self._hashes, new]))
        return np.flatnonzero(known | ~is_first)


# One source: as many of its parts as the plan needs.


@dataclass(frozen=True)
class Need:
    """Windows that a plan uses of one source on each side of the split; None: all that there are."""

    num_train: int | None = None
    num_validation: int | None = None


@dataclass(frozen=True)
class Reading:
    """What was read of a source; see `growtx.store.run_records.SourceReading`."""

    name: str
    share: float
    num_parts: int
    num_parts_read: int
    num_documents: int
    num_held_out: int
    num_bytes: int
    num_tokens: int
    dropped: dict[str, int]


@dataclass
class _Sequence:
    """The shards of a source, as far as they are known."""

    by_part: list[list[PackedShard]] = field(default_factory=list)

    @property
    def shards(self) -> list[PackedShard]:
        return [shard for part in self.by_part for shard in part]

    def windows(self, split: str) -> npt.NDArray[np.int64]:
        """Windows up to the end of each shard."""
        sizes = [index["files"][split]["num_windows"] for _, index in self.shards]
        return np.cumsum(np.array(sizes, dtype=np.int64))

    def num_needed(self, split: str, wanted: int | None) -> int | None:
        """How many of the shards hold the windows that are wanted; None: these do not."""
        if wanted is None:
            return None
        ends = self.windows(split)
        number = int(np.searchsorted(ends, wanted)) + 1
        return number if number <= len(ends) else None

    def is_enough(self, need: Need) -> bool:
        return None not in (
            self.num_needed("train", need.num_train),
            self.num_needed("validation", need.num_validation),
        )


class _SourceJob:
    """Packs one source.

    Args:
        show: is told how far it is.
    """

    def __init__(
        self,
        packer: SourcePacker,
        cache: PackCache,
        memo: HashMemo,
        config: DataConfig,
        number: int,
        *,
        show: Callable[[str], None],
    ) -> None:
        self.source, self.name = config.sources[number], config.source_names[number]
        self._packer, self._cache, self._memo, self._config = packer, cache, memo, config
        self.parts = divide(self.source)
        self._tasks: list[PartTask] = []
        self._seen = Seen()
        self._show = show

    @property
    def is_small(self) -> bool:
        return self.parts[0].is_small

    def run(self, need: Need, num_shards: int | None = None) -> _Sequence:
        """Pack until there is enough, or `num_shards` of them.

        Raises:
            DataError: text cannot be read, or the disk is full. Finished shards are kept.
        """
        packed = _Sequence()
        progress = _Progress(self.name, need, self._show)
        waiting: dict[int, list[PackedShard]] = {}

        def is_done() -> bool:
            if num_shards is not None:
                return len(packed.shards) >= num_shards
            return packed.is_enough(need)

        while len(packed.by_part) < len(self.parts) and not is_done():
            wave = self._next_wave(packed, need, num_shards)
            missing = []
            for number in wave:
                found = list(finished_shards(self._tasks[number], self._cache, hashed=self.is_small))
                if found and not found[-1][1].get("has_more", False):
                    waiting[number] = found
                else:
                    missing.append(number)
            for number, shard in self._pack(missing):
                waiting.setdefault(number, []).append(shard)
                progress.add(shard[1], packed)
                _join(packed, waiting)
                if is_done():
                    break
            _join(packed, waiting)
        return packed

    def _next_wave(self, packed: _Sequence, need: Need, num_shards: int | None) -> range:
        """Parts to look at next: not many more than are needed, as far as those before them tell."""
        first = len(packed.by_part)
        last = min(len(self.parts), first + self._wave_size(packed, need, num_shards))
        while len(self._tasks) < last:
            self._add_tasks(last)
        return range(first, last)

    def _wave_size(self, packed: _Sequence, need: Need, num_shards: int | None) -> int:
        at_least = PARTS_TO_TRY * _num_cpus() if self._is_for_cluster else 1
        if num_shards is not None:
            return max(1, num_shards - len(packed.shards))
        if need.num_train is None or need.num_validation is None:
            return len(self.parts)
        if not packed.by_part:
            return at_least
        missing = 1.0
        for split, wanted in (("train", need.num_train), ("validation", need.num_validation)):
            have = max(1, int(packed.windows(split)[-1]))
            missing = max(missing, len(packed.by_part) * (wanted - have) / have * 1.02)
        return min(len(self.parts), int(np.ceil(missing)))

    def _add_tasks(self, last: int) -> None:
        """Name the parts up to `last`, which may mean to read them for duplicates."""
        new = [self._task(part) for part in self.parts[len(self._tasks) : last]]
        if self._config.deduplicate is None:
            self._tasks += new
            return
        for task, hashes in zip(new, self._hashed(new), strict=True):
            duplicates = self._seen.duplicates(hashes)
            self._tasks.append(task.without(duplicates) if duplicates.size else task)

    def _task(self, part: Part) -> PartTask:
        content = content_fingerprint(self.source, self._memo, part)
        return PartTask(
            cache_root=self._cache.root,
            local_bytes=self._cache.local_bytes,
            source=self.source,
            name=self.name,
            validation_fraction=self._config.validation_fraction,
            part=part,
            key=self._packer.key(content, self._config.validation_fraction),
        )

    @property
    def _is_for_cluster(self) -> bool:
        return not self.is_small and _num_cpus() > 0

    def _hashed(self, tasks: list[PartTask]) -> list[npt.NDArray[np.uint64]]:
        if not self._is_for_cluster:
            return [hash_part(task) for task in tasks]
        found = dict(_on_cluster(_hash_row, tasks, {}))
        return [found[number] for number in range(len(tasks))]

    def _pack(self, numbers: list[int]) -> Iterator[tuple[int, PackedShard]]:
        """Shards of these parts, as they are made; all shards of a part in order."""
        tasks = [self._tasks[number] for number in numbers]
        if self._is_for_cluster and tasks:
            for place, shard in _on_cluster(_pack_row, tasks, {"packer": self._packer}):
                yield numbers[place], shard
        else:
            for number, task in zip(numbers, tasks, strict=True):
                for shard in pack_part(self._packer, task, hashed=self.is_small):
                    yield number, shard

    def whole_key(self) -> str:
        """What the whole source is called where it is packed in one piece, as earlier versions did."""
        content = content_fingerprint(self.source, self._memo)
        return self._packer.key(content, self._config.validation_fraction)


def _join(packed: _Sequence, waiting: dict[int, list[PackedShard]]) -> None:
    """Add what is known of the parts that follow the known ones; of the last, as many shards as there are."""
    while (number := _number_of_open_part(packed)) in waiting:
        shards = waiting[number]
        if number == len(packed.by_part):
            packed.by_part.append([])
        packed.by_part[number] = list(shards)
        if shards[-1][1].get("has_more", False):
            return
        del waiting[number]


def _number_of_open_part(packed: _Sequence) -> int:
    is_open = packed.by_part and packed.by_part[-1][-1][1].get("has_more", False)
    return len(packed.by_part) - bool(is_open)


# On the cluster.


def _num_cpus() -> int:
    """CPUs of the cluster that this process is connected to; 0 without one."""
    if not is_connected():
        return 0
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def _on_cluster(
    function: Callable[..., Iterator[dict[str, Any]]], tasks: Sequence[PartTask], arguments: dict[str, Any]
) -> Iterator[tuple[int, Any]]:
    """Results of a function of each task, with the number of the task, as they come.

    Raises:
        GrowtxError: that the function has raised.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # progress is told by us
    context = ray.data.DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars
    try:
        context.target_max_block_size, context.enable_progress_bars = 1, False  # every shard is told of at once
        rows = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
            function, fn_kwargs=arguments, num_cpus=1
        )
    finally:
        context.target_max_block_size, context.enable_progress_bars = before
    for row in dataset.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, GrowtxError):
            raise result
        yield row["number"], result


def _pack_row(row: dict[str, Any], packer: SourcePacker) -> Iterator[dict[str, Any]]:
    yield from _told(row, lambda task: pack_part(packer, task))


def _hash_row(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from _told(row, lambda task: iter([hash_part(task)]))


def _told(row: dict[str, Any], function: Callable[[PartTask], Iterator[Any]]) -> Iterator[dict[str, Any]]:
    """Ray would wrap an error of ours into its own, with a page of calls."""
    try:
        for result in function(pickle.loads(row["task"])):
            yield {"number": row["number"], "result": pickle.dumps(result)}
    except GrowtxError as error:
        yield {"number": row["number"], "result": pickle.dumps(error)}


@dataclass
class _Progress:
    """A sentence for each shard that is made."""

    name: str
    need: Need
    show: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    num_shards: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_windows: int = 0

    def add(self, index: dict[str, Any], packed: _Sequence) -> None:
        self.num_shards += 1
        self.num_bytes += sum(entry["num_bytes"] for entry in index["files"].values())
        self.num_tokens += sum(entry["num_tokens"] for entry in index["files"].values())
        self.num_windows += index["files"]["train"]["num_windows"]
        seconds = max(1e-3, time.monotonic() - self.started)
        text = (
            f"Packing {self.name}: {self.num_shards} shards, {self.num_tokens:,} tokens, "
            f"{self.num_bytes / 1e6 / seconds:.1f} MB/s, {self.num_tokens / seconds:,.0f} tokens/s"
        )
        if self.need.num_train and self.num_windows:
            have = int(packed.windows("train")[-1]) if packed.by_part else 0
            left = max(0, self.need.num_train - have) * seconds / self.num_windows
            text += f", about {duration(left)} to go"
        self.show(text)


# All sources of a run.


@dataclass(frozen=True)
class PlanNeed:
    """Windows that a plan uses of all sources together; None: everything is packed.

    Attributes:
        num_train_of: of each source, where stages have weights of their own.
    """

    num_train: int | None = None
    num_validation: int | None = None
    num_train_of: tuple[float, ...] | None = None

    def of(self, config: DataConfig, number: int) -> Need:
        """What that makes of one source; a window more than its share, since sources take turns."""
        if self.num_train is None or self.num_validation is None:
            return Need()
        share = config.sources[number].weight / sum(source.weight for source in config.sources)
        wanted = self.num_train * share if self.num_train_of is None else self.num_train_of[number]
        num_train = int(np.ceil(wanted / config.epochs)) + len(config.sources)
        return Need(num_train, max(1, round(self.num_validation * share)))


def pack(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    context_length: int,
    cache_dir: str,
    need: PlanNeed | None = None,
    recorded: str | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> tuple[PackedData, tuple[Reading, ...]]:
    """Pack what the plan needs of every source and is not in the cache yet, and open the mix.

    Args:
        config: sources, weights and the held-out share; relative paths start at the working directory.
        tokenizer: with <pad> and </s>.
        context_length: tokens per window (T).
        cache_dir: path or fsspec URL; `packed/` is made in it.
        need: how much; small sources are packed as a whole.
        recorded: the mix that a run has begun with: where the text is still the same, it goes on with just that.
        show: is told how far it is, in a sentence.

    Raises:
        DataError: text is missing or unreadable, nothing is held out or nothing is left, or the disk is full.
    """
    store = PackCache(f"{cache_dir.rstrip('/')}/packed", find_problem, local_bytes=config.local_bytes)
    packer = SourcePacker.of(tokenizer, context_length)
    memo = HashMemo(store.local / "content-hashes.json")
    before = _recorded_members(recorded)
    members, readings, used = [], [], []
    for number, name in enumerate(config.source_names):
        job = _SourceJob(packer, store, memo, config, number, show=show)
        member, indexes, num_parts = _pack_source(job, (need or PlanNeed()).of(config, number), before.get(name), store)
        members.append({"name": name, "weight": config.sources[number].weight, **member})
        readings.append(_reading(job, indexes, num_parts))
        used.append(indexes)
    _check_sides(used, config)
    mix: dict[str, Any] = {"format": FORMAT, "sources": members}
    if any("shards" in member for member in members):
        made_with = {key: packer.made_with[key] for key in ("context_length", "tokenizer_fingerprint", "pad_token_id")}
        mix |= {"format": FORMAT_OF_MANY, **made_with}
    path = store.write_json(f"{fingerprint(mix)}.json", mix)
    return open_packed(path, config.local_bytes), tuple(readings)


def _recorded_members(recorded: str | None) -> dict[str, MixMember]:
    if recorded is not None:
        with suppress(DataError):  # it is packed again
            return {member.name: member for member in read_mix(recorded).sources}
    return {}


def _pack_source(
    job: _SourceJob, need: Need, before: MixMember | None, store: PackCache
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """How a mix names the source, the indexes of its shards, and how many of its parts they come from."""
    if before is not None and not job.is_small:
        if before.key is not None and before.key == job.whole_key() and (index := store.index(before.key)) is not None:
            return {"key": before.key}, [index], len(job.parts)
        packed = job.run(need, num_shards=len(before.keys)) if before.shards else _Sequence()
        keys = tuple(key for key, _ in packed.shards[: len(before.keys)])
        if before.shards and keys == before.keys:
            return _member(packed, before.num_train_shards, before.num_validation_shards)
    packed = job.run(need)
    shards = packed.shards
    if not any(entry["num_documents"] for _, index in shards for entry in index["files"].values()):
        raise no_text(job.source, job.name)
    if len(job.parts) == 1 and len(shards) == 1:
        return {"key": shards[0][0]}, [shards[0][1]], 1
    num_train = packed.num_needed("train", need.num_train) or len(shards)
    return _member(packed, num_train, packed.num_needed("validation", need.num_validation) or len(shards))


def _member(packed: _Sequence, num_train: int, num_validation: int) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    used = packed.shards[: max(num_train, num_validation)]
    shards = [{"key": key, "files": index["files"]} for key, index in used]
    ends = np.cumsum([len(part) for part in packed.by_part])
    num_parts = int(np.searchsorted(ends, len(used))) + 1
    counts = {"num_train_shards": num_train, "num_validation_shards": num_validation}
    return {"shards": shards, **counts}, [index for _, index in used], num_parts


def _reading(job: _SourceJob, indexes: list[dict[str, Any]], num_parts: int) -> Reading:
    total = sum(part.num_bytes for part in job.parts)
    read = sum(part.num_bytes for part in job.parts[:num_parts])
    dropped: Counter[str] = Counter()
    for index in indexes:
        dropped.update(index.get("dropped", {}))
    entries = [(split, index["files"][split]) for index in indexes for split in SPLITS]
    return Reading(
        name=job.name,
        share=read / total if total else 1.0,
        num_parts=len(job.parts),
        num_parts_read=num_parts,
        num_documents=sum(entry["num_documents"] for _, entry in entries),
        num_held_out=sum(entry["num_documents"] for split, entry in entries if split == "validation"),
        num_bytes=sum(entry["num_bytes"] for _, entry in entries),
        num_tokens=sum(entry["num_tokens"] for _, entry in entries),
        dropped=dict(dropped),
    )


def _check_sides(used: list[list[dict[str, Any]]], config: DataConfig) -> None:
    """Every source needs a window to train on, and the mix one to measure on."""
    for name, indexes in zip(config.source_names, used, strict=True):
        if not _total(indexes, "train", "num_windows"):
            num_documents = _total(indexes, "validation", "num_documents")
            if num_documents < FEW_DOCUMENTS:
                raise _too_few(num_documents)
            problem = f"All {num_documents} documents of source {name!r} are held out"
            raise DataError(problem, "Give it more documents or lower data.validation_fraction")
    everything = [index for indexes in used for index in indexes]
    if not _total(everything, "validation", "num_windows"):
        num_documents = _total(everything, "train", "num_documents")
        if num_documents < FEW_DOCUMENTS:
            raise _too_few(num_documents)
        enough = min(index["lowest_position"] for index in everything) * 1.01 + 0.001
        raise DataError(
            f"None of {num_documents} documents is held out by data.validation_fraction={config.validation_fraction}",
            f"Raise it to {enough:.3f} or more, or add documents",
        )


FEW_DOCUMENTS = 2  # of so few, no share is both held out and trained on


def _too_few(num_documents: int) -> DataError:
    return DataError(
        f"The text is {plural(num_documents, 'document')}, which cannot be held out and trained on",
        "Divide it: write several rows, or a .txt file, which is cut into documents of document_bytes",
    )


def _total(indexes: list[dict[str, Any]], split: str, what: str) -> int:
    return sum(index["files"][split][what] for index in indexes)
