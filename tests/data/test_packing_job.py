from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from transformers import PreTrainedTokenizerFast

from growtx.config import build_config
from growtx.data import packing, packing_job, sources
from growtx.data.packing import Mix, PackedData, ShardedWindows, open_packed, read_mix, window_indices
from growtx.data.packing_job import PlanNeed, Reading, pack
from growtx.data.sources import DataConfig, SourceConfig, divide, iterate_documents
from growtx.data.tokenizer import from_vocabulary
from growtx.data.vocabulary import MANDATORY_TOKENS, Vocabulary
from growtx.exceptions import DataError
from tests.data.byte_tokenizer import byte_tokenizer
from tests.object_store import ObjectStore
from tests.small_disk import resize, small_disk

END = 2
LENGTH = 32
MANY = PlanNeed()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources above 2 kB are divided into parts of about 1 kB, whose shards hold 600 bytes of text."""
    set_limits(monkeypatch)


def set_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LIMITS.items():
        monkeypatch.setattr(sources, name, value)


def counting_fills(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """From now on, where shards are made; also those that fail."""
    made: list[Path] = []
    fill = packing_job.SourcePacker.fill

    def counted(self: Any, directory: Path, **arguments: Any) -> dict[str, Any]:
        made.append(directory)
        return fill(self, directory, **arguments)

    monkeypatch.setattr(packing_job.SourcePacker, "fill", counted)
    return made


LIMITS = {"SMALL_BYTES": 2000, "SMALLEST_PART": 1000, "LARGEST_PART": 1000, "SHARD_BYTES": 600}


def write_texts(directory: Path, kind: str, *, num_files: int = 3, num_rows: int = 60) -> str:
    """Files of short texts, all different; the pattern that names them."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        texts = [f"file {number} row {row} " + "river boat 河 лодка "[: row % 19] for row in range(num_rows)]
        if kind == "parquet":
            pq.write_table(
                pa.table({"text": texts}), directory / f"{number}.parquet", row_group_size=7, compression="none"
            )
        else:
            lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            (directory / f"{number}.jsonl").write_text(lines, encoding="utf-8")
    return str(directory / f"*.{kind}")


def config_of(files: str, **fields: Any) -> DataConfig:
    own = {name: fields.pop(name) for name in ("max_documents", "text_column") if name in fields}
    tree = {"sources": [{"files": files, "name": "texts", **own}], "validation_fraction": 0.2, **fields}
    return build_config(DataConfig, tree)


def packed_with(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, place: Path | str, need: PlanNeed = MANY, **more: Any
) -> tuple[PackedData, Reading]:
    data, (reading,) = pack(config, tokenizer, context_length=LENGTH, cache_dir=str(place), need=need, **more)
    return data, reading


def texts_of(data: PackedData, tokenizer: PreTrainedTokenizerFast, side: str) -> list[str]:
    windows = getattr(data, side).sources[0].windows
    tokens = windows[:].reshape(-1)
    parts = np.split(tokens, np.flatnonzero(tokens == END) + 1)
    return [tokenizer.decode([token for token in part[:-1] if token != data.pad_token_id]) for part in parts[:-1]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_parts_of_a_source_hold_every_document_once(
    kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None
) -> None:
    config = config_of(write_texts(tmp_path / "texts", kind))
    assert len(divide(config.sources[0])) > 5
    data, reading = packed_with(config, tokenizer, tmp_path / "cache")
    documents = list(iterate_documents(config))
    assert len({document.text for document in documents}) == 180
    for side in ("train", "validation"):
        assert texts_of(data, tokenizer, side) == [item.text for item in documents if item.split == side]
    assert (reading.share, reading.num_documents, reading.num_parts_read) == (1.0, 180, reading.num_parts)
    assert reading.num_held_out == data.validation.num_documents


def test_neighbouring_small_files_share_a_part(tmp_path: Path, small_limits: None) -> None:
    pattern = write_texts(tmp_path, "jsonl", num_files=30, num_rows=5)
    parts = divide(SourceConfig(files=pattern))
    assert 3 < len(parts) < 10
    assert sorted(file.path for part in parts for file in part.files or ()) == sorted(map(str, tmp_path.iterdir()))


def test_a_part_of_much_text_becomes_several_shards_that_are_one_sequence(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None
) -> None:
    config = config_of(write_texts(tmp_path / "texts", "jsonl"), max_documents=170)
    assert len(divide(config.sources[0])) == 1
    data, _ = packed_with(config, tokenizer, tmp_path / "cache")
    windows = data.train.sources[0].windows
    assert isinstance(windows, ShardedWindows) and len(windows.shards) > 5
    assert texts_of(data, tokenizer, "train") == [d.text for d in iterate_documents(config) if d.split == "train"]
    assert all(shard.num_windows * LENGTH < 700 + 100 for shard in windows.shards)


def test_a_plan_reads_the_beginning_of_the_mixed_parts_and_a_longer_one_goes_on(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None
) -> None:
    config = config_of(write_texts(tmp_path / "texts", "jsonl", num_files=8))
    everything, _ = packed_with(config, tokenizer, tmp_path / "all")
    short, reading = packed_with(config, tokenizer, tmp_path / "cache", PlanNeed(60, 4))
    assert 60 <= len(short.train) < 120 < len(everything.train)
    assert len(short.validation) >= 4
    assert 0 < reading.share < 0.6 and reading.num_parts_read < reading.num_parts
    keys = read_mix(short.path).sources[0].keys
    made = {path.parent.name for path in (tmp_path / "cache/packed").glob("*/index.json")}
    longer, _ = packed_with(config, tokenizer, tmp_path / "cache", PlanNeed(150, 4))
    assert read_mix(longer.path).sources[0].keys[: len(keys)] == keys
    assert made < {path.parent.name for path in (tmp_path / "cache/packed").glob("*/index.json")}
    for data in (short, longer):
        assert (data.train.sources[0].windows[:] == everything.train.sources[0].windows[: len(data.train)]).all()
    assert short.validation.sources[0].sha256 == longer.validation.sources[0].sha256, "measured on the same text"


def test_epochs_divide_what_is_read(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None) -> None:
    files = write_texts(tmp_path / "texts", "jsonl", num_files=8)
    once, _ = packed_with(config_of(files), tokenizer, tmp_path, PlanNeed(160, 1))
    twice, _ = packed_with(config_of(files, epochs=4), tokenizer, tmp_path, PlanNeed(160, 1))
    assert 40 <= len(twice.train) < 160 <= len(once.train)


def test_the_order_in_which_shards_are_made_does_not_show(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(write_texts(tmp_path / "texts", "jsonl", num_files=8))
    first, _ = packed_with(config, tokenizer, tmp_path / "1", PlanNeed(100, 4))

    def backwards(function: Any, tasks: list[Any], arguments: dict[str, Any]) -> Iterator[tuple[int, Any]]:
        for number in reversed(range(len(tasks))):
            for shard in packing_job.pack_part(arguments["packer"], tasks[number]):
                yield number, shard

    monkeypatch.setattr(packing_job, "_num_cpus", lambda: 3)
    monkeypatch.setattr(packing_job, "_on_cluster", backwards)
    second, _ = packed_with(config, tokenizer, tmp_path / "2", PlanNeed(100, 4))
    assert second.fingerprint == first.fingerprint
    assert Path(second.path).read_bytes() == Path(first.path).read_bytes()


def test_what_is_done_is_not_done_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(write_texts(tmp_path / "texts", "jsonl"))
    whole, _ = packed_with(config, tokenizer, tmp_path / "whole")
    made: list[Path] = []
    fill = packing_job.SourcePacker.fill

    def failing(self: Any, directory: Path, **arguments: Any) -> dict[str, Any]:
        if len(made) == 7:
            made.append(directory)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        made.append(directory)
        return fill(self, directory, **arguments)

    monkeypatch.setattr(packing_job.SourcePacker, "fill", failing)
    with pytest.raises(DataError, match=r"No space is left for packed data.*Free space"):
        packed_with(config, tokenizer, tmp_path / "cache")
    again, _ = packed_with(config, tokenizer, tmp_path / "cache")
    assert again.fingerprint == whole.fingerprint
    assert len(made) == 1 + len(read_mix(whole.path).sources[0].keys), "the one that failed is the only one made twice"
    assert not list((tmp_path / "cache/packed").glob(".making-*"))


def test_a_disk_that_is_really_full_stops_packing_and_room_lets_it_go_on(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(write_texts(tmp_path / "texts", "jsonl", num_files=6, num_rows=200))
    whole, _ = packed_with(config, tokenizer, tmp_path / "whole")
    made = counting_fills(monkeypatch)
    with small_disk(tmp_path / "disk", kibibytes=256) as disk:
        with pytest.raises(DataError, match=r"No space is left for packed data.*Free space"):
            packed_with(config, tokenizer, disk / "cache")
        num_failed, made[:] = len(made), []
        assert num_failed > 5 and not list((disk / "cache/packed").glob(".making-*"))
        resize(disk, kibibytes=16 * 1024)
        again, _ = packed_with(config, tokenizer, disk / "cache")
        again.verify()
        assert again.fingerprint == whole.fingerprint
        assert len(made) == len(read_mix(whole.path).sources[0].keys) - (num_failed - 1)


def test_a_part_goes_on_with_the_shards_that_it_lacks(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(write_texts(tmp_path / "texts", "jsonl"), max_documents=170)  # one part of many shards
    whole, _ = packed_with(config, tokenizer, tmp_path)
    keys = read_mix(whole.path).sources[0].keys
    for number in (2, 5):
        shutil.rmtree(tmp_path / "packed" / keys[number])
    made = counting_fills(monkeypatch)
    again, _ = packed_with(config, tokenizer, tmp_path)
    again.verify()
    assert again.fingerprint == whole.fingerprint and len(made) == 2


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_damaged_shard_is_found_and_packed_alone(
    harm: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None
) -> None:
    config = config_of(write_texts(tmp_path / "texts", "jsonl"))
    data, _ = packed_with(config, tokenizer, tmp_path)
    keys = read_mix(data.path).sources[0].keys
    damaged = tmp_path / "packed" / keys[2] / "train.arrow"
    content = bytearray(damaged.read_bytes())
    others = {key: (tmp_path / "packed" / key / "train.arrow").stat().st_ino for key in keys if key != keys[2]}
    if harm == "cut":
        damaged.write_bytes(content[:-9])
        with pytest.raises(DataError, match=f"{keys[2]} is missing or damaged"):
            open_packed(data.path)
    else:
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=f"not as recorded in its shard .*{keys[2]}.*Delete"):
            open_packed(data.path).verify()
        damaged.unlink()  # as the remedy says
    again, _ = packed_with(config, tokenizer, tmp_path)
    again.verify()
    assert again.fingerprint == data.fingerprint
    assert {key: (tmp_path / "packed" / key / "train.arrow").stat().st_ino for key in others} == others


def test_a_run_goes_on_with_the_text_that_it_began_with(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(write_texts(tmp_path / "texts", "jsonl", num_files=8))
    before, _ = packed_with(config, tokenizer, tmp_path)  # as earlier versions did: the whole source in one piece
    assert len(read_mix(before.path).sources[0].keys) == 1
    set_limits(monkeypatch)
    resumed, _ = packed_with(config, tokenizer, tmp_path, PlanNeed(100, 4), recorded=before.path)
    assert resumed.fingerprint == before.fingerprint
    begun, _ = packed_with(config, tokenizer, tmp_path, PlanNeed(100, 4))
    longer, _ = packed_with(config, tokenizer, tmp_path, PlanNeed(300, 4), recorded=begun.path)
    assert longer.fingerprint == begun.fingerprint != before.fingerprint
    with (tmp_path / "texts/0.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    other, _ = packed_with(config, tokenizer, tmp_path, PlanNeed(300, 4), recorded=begun.path)
    assert other.fingerprint != begun.fingerprint


@pytest.mark.parametrize("limits", [False, True])
def test_exact_duplicates_are_dropped_and_counted(
    limits: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limits:
        set_limits(monkeypatch)
    files = write_texts(tmp_path / "texts", "jsonl")
    rows = [json.dumps({"text": f"file {row % 3}  row {row // 2}\n"}) for row in range(40)]
    (tmp_path / "texts/9.jsonl").write_text("\n".join([*rows, '{"text": " "}', '{"text": null}']))
    plain, reading = packed_with(config_of(files), tokenizer, tmp_path)
    assert reading.dropped == {"empty": 2} and reading.num_documents == 220
    data, reading = packed_with(config_of(files, deduplicate="exact"), tokenizer, tmp_path)
    texts = [" ".join(text.split()) for side in ("train", "validation") for text in texts_of(data, tokenizer, side)]
    expected = {" ".join(d.text.split()) for d in iterate_documents(config_of(files))}
    assert len(texts) == len(set(texts)) and set(texts) == expected
    assert reading.dropped == {"empty": 2, "duplicate": 220 - len(expected)}
    assert plain.fingerprint != data.fingerprint


class _Flaky(MemoryFileSystem):  # type: ignore[misc]
    """Breaks off while it is read, as often as it is told."""

    protocol = "flaky"
    breaks = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if mode != "rb":
            return file

        class Breaking:
            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def readinto(self, buffer: Any) -> int:
                if file.tell() > 0 and _Flaky.breaks:
                    _Flaky.breaks -= 1
                    raise ConnectionResetError(104, "Connection reset by peer")
                return int(file.readinto(memoryview(buffer)[:500]))

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None: ...

        return Breaking()


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    fsspec.register_implementation("flaky", _Flaky, clobber=True)
    monkeypatch.setattr(sources, "PAUSES", (0.0, 0.0, 0.0))
    rows = "".join(json.dumps({"text": f"row {row} of a file far away"}) + "\n" for row in range(100))
    fsspec.filesystem("flaky").pipe_file(f"/{tmp_path.name}/a.jsonl", rows.encode())
    return f"flaky://{tmp_path.name}/a.jsonl"


def test_a_source_that_breaks_off_twice_is_read_to_its_end(
    flaky: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _Flaky.breaks = 0
    whole, _ = packed_with(config_of(flaky), tokenizer, tmp_path / "1")
    _Flaky.breaks = 2
    data, _ = packed_with(config_of(flaky), tokenizer, tmp_path / "2")
    assert _Flaky.breaks == 0 and data.fingerprint == whole.fingerprint and whole.train.num_documents > 50


def test_a_source_that_does_not_come_back_is_named_with_how_far_it_came(
    flaky: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _Flaky.breaks = 10**6
    with pytest.raises(DataError, match=r"Source 'texts' broke off 4 times after \d+ rows.*reset by peer.*kept"):
        packed_with(config_of(flaky), tokenizer, tmp_path)


@pytest.mark.parametrize("fraction", [1e-9, 0.999999])
def test_one_document_alone_says_how_to_divide_it(
    fraction: float, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = "One endless text. " * 300
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    with pytest.raises(DataError, match=r"The text is 1 document,.*\.txt file, which is cut"):
        packed_with(config_of(f"{tmp_path}/a.jsonl", validation_fraction=fraction), tokenizer, tmp_path)
    (tmp_path / "a.txt").write_text(text)
    tree = {"sources": [{"files": f"{tmp_path}/a.txt", "document_bytes": 64}], "validation_fraction": 0.5}
    data, _ = packed_with(build_config(DataConfig, tree), tokenizer, tmp_path)
    assert len(data.train) and len(data.validation)


def test_a_document_without_end_is_cut_at_white_space(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 100)
    words = [f"word{number}" for number in range(200)]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": " ".join(words)}) + "\n" + json.dumps({"text": "x" * 250}))
    documents = [d.text for d in iterate_documents(config_of(f"{tmp_path}/a.jsonl"))]
    assert "".join(documents) == " ".join(words) + "x" * 250
    assert len(documents) > 15 and max(map(len, documents)) <= 100
    assert [word for text in documents[:-3] for word in text.split()] == words


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_data_set_of_the_hub_is_read_by_its_files(
    kind: str, streaming: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_texts(tmp_path / "texts", "parquet" if kind == "parquet" else "jsonl")
    source = {"hf": kind, "data_files": files, "streaming": streaming, "name": "texts"}
    config = build_config(DataConfig, {"sources": [source], "validation_fraction": 0.2})
    whole = list(iterate_documents(config))
    set_limits(monkeypatch)
    assert len(divide(config.sources[0])) > 5
    data, _ = packed_with(config, tokenizer, tmp_path)
    assert sorted(texts_of(data, tokenizer, "train")) == sorted(d.text for d in whole if d.split == "train")
    assert data.fingerprint == packed_with(config_of(files), tokenizer, tmp_path)[0].fingerprint


def test_progress_says_how_fast_it_goes_and_how_long_it_takes(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None
) -> None:
    said: list[str] = []
    config = config_of(write_texts(tmp_path / "texts", "jsonl"))
    packed_with(config, tokenizer, tmp_path, PlanNeed(100, 4), show=said.append)
    assert len(said) > 3
    assert re.fullmatch(
        r"Packing texts: 3 shards, [\d,]+ tokens, [\d.]+ MB/s, [\d,]+ tokens/s, about .+ to go", said[2]
    )
    said.clear()
    packed_with(config, tokenizer, tmp_path, PlanNeed(100, 4), show=said.append)
    assert not said, "nothing was packed"


# More shards than a node keeps.


def test_every_window_of_many_shards_has_its_turn_once_an_epoch() -> None:
    sizes = tuple(int(size) for size in np.random.default_rng(0).integers(1, 40, 50))
    mix = Mix((7, sum(sizes)), (1.0, 1.0), ((7,), sizes))
    drawn = np.concatenate([window_indices(mix, seed=1, step=step, global_batch_size=2) for step in range(sum(sizes))])
    mine = drawn[drawn >= 7] - 7
    assert sorted(mine) == list(range(sum(sizes)))
    later = np.concatenate([window_indices(mix, seed=1, step=step, global_batch_size=10) for step in (30, 31)])
    assert sorted(later) == sorted(drawn[300:320]), "whatever the batch"
    owners = np.searchsorted(np.cumsum(sizes), mine, side="right")
    assert max(len(set(owners[start : start + 20])) for start in range(0, sum(sizes) - 20, 10)) <= 16


def test_a_node_keeps_no_more_of_a_bucket_than_it_may(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, bucket = write_texts(tmp_path / "texts", "jsonl", num_files=4), f"memory://{tmp_path.name}-bounded"
    reference, _ = packed_with(config_of(files), tokenizer, tmp_path / "local")
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "driver"))
    data, _ = packed_with(config_of(files, local_bytes=9_000), tokenizer, bucket)
    assert data.fingerprint == reference.fingerprint
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "worker"))
    opened = open_packed(data.path, 9_000)
    assert not list((tmp_path / "worker").glob("*/*/train.arrow")), "nothing is copied before it is needed"
    order = np.random.default_rng(0).permutation(len(opened.train))
    for rows in np.array_split(order, 12):
        assert (opened.train.take(rows) == reference.train.take(rows)).all()
        kept = sum(path.stat().st_size for path in (tmp_path / "worker").glob("*/*/*") if path.is_file())
        assert kept <= 9_000 + 6_000, "one more while it is put in its place"
    total = sum(path.stat().st_size for path in (tmp_path / "local/packed").glob("*/*"))
    assert total > 3 * 9_000


def test_shards_are_fetched_before_their_turn_and_once(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, bucket = write_texts(tmp_path / "texts", "jsonl"), f"memory://{tmp_path.name}-prefetch"
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "driver"))
    data, _ = packed_with(config_of(files), tokenizer, bucket)
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "worker"))
    opened = open_packed(data.path)
    fetched: list[str] = []
    memory = type(fsspec.filesystem("memory"))
    get_file = memory.get_file

    def counted(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        fetched.append(path)
        return get_file(self, path, *arguments, **options)

    monkeypatch.setattr(memory, "get_file", counted)
    opened.train.prefetch(np.arange(40))
    opened.train.prefetch(np.arange(40))
    windows = opened.train.sources[0].windows
    assert isinstance(windows, ShardedWindows)
    windows._fetcher.shutdown(wait=True)
    before = list(fetched)
    assert len(before) == len(set(before)) > 0
    opened.train.take(np.arange(40))
    assert fetched == before


def test_few_files_are_open_however_many_there_are(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MAPS_AT_ONCE", 3)
    data, _ = packed_with(config_of(write_texts(tmp_path / "texts", "jsonl", num_files=8)), tokenizer, tmp_path)
    reference = data.train.sources[0].windows[:]
    order = np.random.default_rng(0).permutation(len(data.train))
    assert (data.train.take(order) == reference[order]).all()
    windows = data.train.sources[0].windows
    assert isinstance(windows, ShardedWindows) and len(windows._maps) == 3 < len(windows.shards)


# More tokens than 32 bits can number.


def _sparse_shard(directory: Path, number: int, num_windows: int, context_length: int) -> dict[str, Any]:
    """A shard whose tokens are holes, but for the first and the last window."""
    key = f"{number:064x}"
    (directory / key).mkdir(parents=True)
    files = {}
    for split, size in (("train", num_windows), ("validation", 1)):
        before, after = packing._arrow_frame(size, context_length)
        path = directory / key / f"{split}.arrow"
        with path.open("wb") as file:
            file.write(before)
            for window in (0, size - 1):
                file.seek(len(before) + 4 * context_length * window)
                file.write(np.full(context_length, number * 10 + (window > 0), dtype="<i4").tobytes())
            file.write(after)
        counts = {"num_windows": size, "num_documents": 1, "num_tokens": size * context_length, "num_bytes": size}
        files[split] = {"file": path.name, **counts, "size_bytes": path.stat().st_size, "sha256": f"{number:064x}"}
    (directory / key / "index.json").write_text(json.dumps({"files": files}))
    return {"key": key, "files": files}


def test_a_source_may_have_more_tokens_than_32_bits_can_number(tmp_path: Path) -> None:
    length, size, count = 1 << 16, 1 << 13, 9
    assert length * size * count > 2**32
    member = {
        "name": "large",
        "weight": 1.0,
        "shards": [_sparse_shard(tmp_path, number, size, length) for number in range(count)],
        "num_train_shards": count,
        "num_validation_shards": 1,
    }
    made_with = {"context_length": length, "tokenizer_fingerprint": "t", "pad_token_id": 0}
    (tmp_path / "mix.json").write_text(json.dumps({"format": 2, "sources": [member], **made_with}))
    data = open_packed(str(tmp_path / "mix.json"))
    assert data.train.num_tokens == length * size * count and len(data.validation) == 1
    ends = np.array([[number * size, (number + 1) * size - 1] for number in range(count)])
    taken = data.train.take(ends.reshape(-1))
    assert (taken == np.array([[n * 10, n * 10 + 1] for n in range(count)]).reshape(-1, 1)).all()
    drawn = np.concatenate([window_indices(data.mix, seed=0, step=step, global_batch_size=4096) for step in range(18)])
    assert np.array_equal(np.sort(drawn), np.arange(size * count))


@pytest.mark.skipif("GROWTX_LARGE_TESTS" not in os.environ, reason="ten minutes and 12 GB; `make large` runs it")
def test_more_than_two_to_the_31_tokens_are_packed_for_real(tmp_path: Path) -> None:
    letters = "abcdefghij"
    vocabulary = Vocabulary((*MANDATORY_TOKENS, *letters, *"z 0123456789", letters, f"z{letters}"), (("z", letters),))
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list(letters), 9)) for _ in range(5000)]  # a token for each of their letters
    with (tmp_path / "texts.jsonl").open("w") as file:
        for row in range(230_000):
            picked = draw.choice(5000, 1000)
            file.write(json.dumps({"text": f"{row} " + "".join(f" {words[n]}" for n in picked)}) + "\n")
    config = config_of(str(tmp_path / "texts.jsonl"))
    data, reading = packed_with(config, from_vocabulary(vocabulary), tmp_path / "cache")
    assert data.train.sources[0].num_tokens > 1.7e9 and reading.num_tokens > 2**31
    assert reading.num_documents == 230_000
    data.verify()
    last = data.train.take(np.array([0, len(data.train) - 1]))
    assert (last > 0).any(axis=1).all()


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_text_and_packed_data_may_lie_in_buckets(
    kind: str,
    object_store: ObjectStore,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on two nodes: one packs, the other reads and keeps a part of it."""
    local, bucket = write_texts(tmp_path / "texts", kind, num_files=2), object_store.bucket()
    reference, _ = packed_with(config_of(local), tokenizer, tmp_path / "local")
    fsspec.filesystem("s3").put(f"{tmp_path}/texts/", f"{bucket}/texts/", recursive=True)
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "driver"))
    config = config_of(f"{bucket}/texts/*.{kind}", local_bytes=9_000)
    data, _ = packed_with(config, tokenizer, f"{bucket}/cache")
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "worker"))
    opened = open_packed(data.path, 9_000)
    assert opened.fingerprint == reference.fingerprint
    assert (opened.train.sources[0].windows[:] == reference.train.sources[0].windows[:]).all()
    kept = sum(path.stat().st_size for path in (tmp_path / "worker").glob("*/*/*") if path.is_file())
    assert 0 < kept <= 9_000
    again, _ = packed_with(config, tokenizer, f"{bucket}/cache", show=lambda sentence: pytest.fail("packed again"))
    assert again.path == data.path
