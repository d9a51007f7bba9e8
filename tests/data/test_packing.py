from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from growtx.config import build_config
from growtx.data import packing, packing_job
from growtx.data.pack_cache import PackCache
from growtx.data.packing import PackedData, PackedSplit, open_packed, sha256_of_windows, window_indices
from growtx.data.packing_job import SourcePacker, pack
from growtx.data.sources import DataConfig, iterate_documents
from growtx.exceptions import DataError
from tests.data.byte_tokenizer import byte_tokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CORPORA = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpora"
PAD, END = 0, 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Two sources of 60 and 90 documents in several scripts."""
    words = ["river", "boat", "река", "лодка", "河", "船", "Fluß", "🚣"]
    for name, size in (("a", 60), ("b", 90)):
        rows = [{"text": f"{name}{number} " + " ".join(words[: number % 9])} for number in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return _config(tmp_path)


def _config(tmp_path: Path, weight: float = 1.0, **fields: Any) -> DataConfig:
    sources = [{"files": f"{tmp_path}/a.jsonl", "weight": weight}, {"files": f"{tmp_path}/b.jsonl"}]
    return build_config(DataConfig, {"sources": sources, "validation_fraction": 0.2, **fields})


def _pack(config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, length: int = 32) -> PackedData:
    return pack(config, tokenizer, context_length=length, cache_dir=str(tmp_path / "cache"))[0]


def _texts(split: PackedSplit, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    texts: list[str] = []
    for source in split.sources:
        tokens = source.windows.reshape(-1)[: source.num_tokens]
        ends = np.flatnonzero(tokens == END)
        texts += [tokenizer.decode(part[:-1]) for part in np.split(tokens, ends + 1)[:-1]]
    return texts


def test_every_document_comes_back_whole_on_its_side(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    packed = _pack(config, tokenizer, tmp_path)
    documents = list(iterate_documents(config))
    for side, split in (("train", packed.train), ("validation", packed.validation)):
        expected = [document.text for document in documents if document.split == side]
        assert _texts(split, tokenizer) == expected
        assert split.num_documents == len(expected)
        assert split.num_bytes == sum(len(text.encode()) for text in expected)
        assert split.num_tokens == split.num_bytes + len(expected)  # one token per byte and one </s> per document


def test_padding_stands_at_the_very_end_only(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    packed = _pack(config, tokenizer, tmp_path)
    assert packed.pad_token_id == PAD
    for source in (*packed.train.sources, *packed.validation.sources):
        flat = source.windows.reshape(-1)
        assert (flat[: source.num_tokens] != PAD).all()
        assert (flat[source.num_tokens :] == PAD).all()
        assert flat.size - source.num_tokens < 32


def test_text_that_spells_special_tokens_stays_text(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"text": f"{number} <pad> and </s> are words"} for number in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_config(DataConfig, {"sources": [{"files": f"{tmp_path}/a.jsonl"}], "validation_fraction": 0.2})
    packed = _pack(config, tokenizer, tmp_path)
    assert [text.split(" ", 1)[1] for text in _texts(packed.train, tokenizer)] == [
        "<pad> and </s> are words"
    ] * packed.train.num_documents


def test_packing_leaves_the_tokenizer_as_it_was(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    _pack(config, tokenizer, tmp_path)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer("</s>")["input_ids"] == [END]


def test_the_batches_that_are_tokenised_do_not_show(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _pack(config, tokenizer, tmp_path / "1")
    monkeypatch.setattr(packing_job, "BATCH_CHARACTERS", 1)
    assert _pack(config, tokenizer, tmp_path / "2").fingerprint == whole.fingerprint


def test_a_second_call_packs_nothing_and_opens_the_same(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _pack(config, tokenizer, tmp_path)
    monkeypatch.setattr(SourcePacker, "fill", None)
    second = _pack(config, tokenizer, tmp_path)
    assert second.fingerprint == first.fingerprint
    assert second.path == first.path
    assert open_packed(first.path).fingerprint == first.fingerprint


def test_new_weights_pack_nothing_again_but_are_another_mix(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _pack(config, tokenizer, tmp_path)
    monkeypatch.setattr(SourcePacker, "fill", None)
    second = _pack(_config(tmp_path, weight=3.0), tokenizer, tmp_path)
    assert second.fingerprint != first.fingerprint
    assert second.mix.shares == (0.75, 0.25)
    assert open_packed(first.path).mix.shares == (0.5, 0.5)


def test_changed_text_length_or_share_is_packed_again(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = _pack(config, tokenizer, tmp_path)
    others = [
        _pack(config, tokenizer, tmp_path, length=16),
        _pack(_config(tmp_path, validation_fraction=0.4), tokenizer, tmp_path),
    ]
    with (tmp_path / "a.jsonl").open("a") as handle:
        handle.write('{"text": "one more"}\n')
    others.append(_pack(config, tokenizer, tmp_path))
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_windows_are_read_only_views_of_the_files(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for source in _pack(config, tokenizer, tmp_path).train.sources:
        assert source.windows.dtype == np.int32
        assert not source.windows.flags.owndata
        assert not source.windows.flags.writeable


def test_windows_are_taken_by_their_number_through_all_sources(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    packed = _pack(config, tokenizer, tmp_path)
    everything = np.concatenate([source.windows for source in packed.train.sources])
    indices = window_indices(packed.mix, seed=0, step=3, global_batch_size=64)
    taken = packed.train.take(indices)
    assert (taken == everything[indices]).all()
    taken[:] = 0  # a copy, so that a trainer may move it anywhere


def test_a_damaged_cache_is_found_by_workers_and_repaired_by_the_driver(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed = _pack(config, tokenizer, tmp_path)
    fingerprint, path = packed.fingerprint, packed.path
    (damaged, *_) = sorted((tmp_path / "cache" / "packed").glob("*/train.arrow"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(DataError, match="is missing or damaged"):
        open_packed(path)
    with caplog.at_level(logging.WARNING):
        assert _pack(config, tokenizer, tmp_path).fingerprint == fingerprint
    assert "is damaged (train.arrow has" in caplog.text


def overwrite(path: Path, start: float, length: float) -> None:
    """Change every byte of a part of a file, in shares of its size, as what writes into the wrong file would."""
    content = bytearray(path.read_bytes())
    first, size = int(start * len(content)), max(1, int(length * len(content)))
    content[first : first + size] = bytes(byte ^ 0x5A for byte in content[first : first + size])
    path.write_bytes(content)


@pytest.mark.parametrize("part", [(0.3, 0.33), (0.5, 0), (0.6, 0.2), (0.97, 0.03), (0, 1)])
@pytest.mark.parametrize("side", ["train", "validation"])
def test_overwritten_tokens_are_found_by_workers_and_packed_again_by_the_driver(
    side: str, part: tuple[float, float], config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    packed = _pack(config, tokenizer, tmp_path)
    before = [source.windows.tobytes() for source in packed.train.sources]
    (damaged, *_) = sorted((tmp_path / "cache" / "packed").glob(f"*/{side}.arrow"))
    overwrite(damaged, *part)
    with pytest.raises(DataError, match="is missing or damaged"):
        open_packed(packed.path)
    again = _pack(config, tokenizer, tmp_path)
    assert [source.windows.tobytes() for source in again.train.sources] == before
    assert open_packed(packed.path).fingerprint == packed.fingerprint


def test_tokens_are_hashed_once_on_a_node_and_again_when_the_file_is_another(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []

    def counted(windows: Any) -> str:
        hashed.append(len(windows))
        return sha256_of_windows(windows)

    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr(packing, "sha256_of_windows", counted)
    packed = _pack(config, tokenizer, tmp_path)
    assert len(hashed) == 4, "two sides of two sources"
    open_packed(packed.path)
    _pack(config, tokenizer, tmp_path)
    assert len(hashed) == 4
    (path, *_) = sorted((tmp_path / "cache" / "packed").glob("*/train.arrow"))
    path.write_bytes(path.read_bytes())
    open_packed(packed.path)
    assert len(hashed) == 5
    monkeypatch.setenv("GROWTX_NODE_CACHE", "/proc/nowhere")  # where nothing can be remembered, nothing is trusted
    open_packed(packed.path)
    open_packed(packed.path)
    assert len(hashed) == 13


def test_whoever_comes_second_does_not_keep_what_is_damaged(tmp_path: Path) -> None:
    def problem(directory: Path, force: bool) -> str | None:
        return None if (directory / "a.bin").read_bytes() == b"12345" else "other bytes"

    def fill(directory: Path) -> dict[str, Any]:
        (directory / "a.bin").write_bytes(b"12345")
        damaged = tmp_path / "key"
        damaged.mkdir()
        (damaged / "a.bin").write_bytes(b"54321")
        (damaged / "index.json").write_text('{"files": {"a": {"file": "a.bin", "size_bytes": 5}}}')
        return {"files": {"a": {"file": "a.bin", "size_bytes": 5}}}

    cache = PackCache(str(tmp_path), problem)
    assert cache.build("key", fill) == cache.entry("key") == tmp_path / "key"
    assert (tmp_path / "key/a.bin").read_bytes() == b"12345"


def test_a_damaged_copy_on_another_filesystem_is_packed_and_uploaded_again(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "driver"))
    url = f"memory://{tmp_path.name}-damaged"
    packed = pack(config, tokenizer, context_length=32, cache_dir=url)[0]
    memory = fsspec.filesystem("memory")
    path = next(name for name in memory.find(f"/{tmp_path.name}-damaged") if name.endswith("train.arrow"))
    content = bytearray(memory.cat_file(path))
    content[len(content) // 2] ^= 1
    memory.pipe_file(path, bytes(content))
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "worker"))
    with pytest.raises(DataError, match="is missing or damaged"):
        open_packed(packed.path)
    assert pack(config, tokenizer, context_length=32, cache_dir=url)[0].fingerprint == packed.fingerprint
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "third"))
    assert open_packed(packed.path).fingerprint == packed.fingerprint


def test_flipped_bits_are_found_by_verify(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system says that nothing was written, as when bits rot on the disk."""
    packed = _pack(config, tokenizer, tmp_path)
    packed.verify()
    monkeypatch.setattr(packing, "check_once", lambda *_, **__: None)
    (damaged, *_) = sorted((tmp_path / "cache" / "packed").glob("*/train.arrow"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"the train windows of '[ab]' are not as recorded"):
        open_packed(packed.path).verify()


def test_packing_at_the_same_time_gives_one_result(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: _pack(config, tokenizer, tmp_path), range(4)))
    assert len({packed.fingerprint for packed in results}) == 1
    assert [path.name for path in (tmp_path / "cache" / "packed").glob(".*")] == []


def test_a_cache_on_another_filesystem_is_mapped_from_a_copy_on_the_node(
    config: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "driver"))
    url = f"memory://{tmp_path.name}"
    packed = pack(config, tokenizer, context_length=32, cache_dir=url)[0]
    assert packed.path.startswith(f"{url}/packed/")
    monkeypatch.setenv("GROWTX_NODE_CACHE", str(tmp_path / "worker"))
    opened = open_packed(packed.path)
    assert opened.fingerprint == packed.fingerprint == _pack(config, tokenizer, tmp_path).fingerprint
    assert not opened.train.sources[0].windows.flags.owndata


def test_too_little_text_says_what_share_would_hold_something_out(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    tree = {"sources": [{"files": f"{tmp_path}/a.jsonl"}], "validation_fraction": 0.001}
    with pytest.raises(DataError, match=r"None of 3 documents is held out.*Raise it to (0\.\d+)") as caught:
        _pack(build_config(DataConfig, tree), tokenizer, tmp_path)
    enough = float(caught.value.remedy.split()[3])
    packed = _pack(build_config(DataConfig, {**tree, "validation_fraction": enough}), tokenizer, tmp_path)
    assert packed.validation.num_documents == 1
    with pytest.raises(DataError, match="All 3 documents of source 'a' are held out"):
        _pack(build_config(DataConfig, {**tree, "validation_fraction": 0.9999}), tokenizer, tmp_path)


def test_a_tokenizer_without_padding_is_refused(config: DataConfig, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(DataError, match="no padding or no end-of-text token"):
        _pack(config, tokenizer, tmp_path)


def test_missing_packed_data_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no packed data .*none.json"):
        open_packed(str(tmp_path / "none.json"))


@pytest.mark.skipif(not CORPORA.exists(), reason="needs the shared corpora")
def test_real_text_is_packed_without_loss(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tree = {"sources": [{"files": str(CORPORA / "handbook_zh.parquet"), "max_documents": 200}]}
    config = build_config(DataConfig, tree)
    packed = _pack(config, tokenizer, tmp_path, length=256)
    expected = [document.text for document in iterate_documents(config) if document.split == "train"]
    assert _texts(packed.train, tokenizer) == expected
