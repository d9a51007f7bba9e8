"""Preparation: everything is made once, known by its fingerprint, and refused before anything has been trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.data.sources import iterate_documents
from growtx.data.tokenizer import build_tokenizer
from growtx.exceptions import BudgetError, ConfigError, DataError, FingerprintError
from growtx.growth.assembly import SUBSTRATE_KEY
from growtx.growth.plan import resolve
from growtx.run.prepare import Prepared, _need, prepare
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from tests.run.configs import config, write_corpus


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preparation")
    write_corpus(path)
    return path


@pytest.fixture(scope="module")
def corpus(home: Path) -> str:
    return str(home / "texts.jsonl")


@pytest.fixture(scope="module")
def prepared(home: Path, corpus: str) -> Prepared:
    """Preparation of the run `home/first`."""
    return prepare(config(corpus), Storage(str(home / "first")))


def test_the_job_holds_everything_that_the_workers_need(prepared: Prepared, home: Path) -> None:
    job = prepared.job
    assert job.run_dir == str(home / "first") and Path(job.packed_path).is_relative_to(home / "cache")
    assert [stage.name for stage in job.stages] == ["depth-1", "depth-2"] and job.num_stages == 2
    architecture = job.model_at(1)
    assert (architecture.num_hidden_layers, architecture.num_layers_for_init) == (1, 2)
    assert architecture.vocab_size == len(prepared.tokenizer) == 275
    assert (architecture.substrate_width, architecture.substrate_expansion) == (16, "interleave")
    assert architecture.pad_token_id == prepared.tokenizer.pad_token_id == prepared.data.pad_token_id
    assert job.architecture["substrate_fingerprint"] == job.substrate.substrate_fingerprint
    assert job.data_fingerprint == prepared.data.fingerprint
    assert job.stage_weights[0] < job.stage_weights[1], "a deeper stage is expected to take longer"


def test_the_substrate_is_a_blob_of_the_run(prepared: Prepared) -> None:
    tensors = BlobStore(prepared.job.run_dir).get(prepared.job.substrate.blob)
    assert list(tensors) == [SUBSTRATE_KEY] and tensors[SUBSTRATE_KEY].shape == (275, 16)
    assert prepared.job.substrate.recipe["kind"] == "binary"


def test_preparing_again_reopens_what_is_there(
    prepared: Prepared, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr("growtx.run.prepare.build_tokenizer", never)
    monkeypatch.setattr("growtx.run.prepare.build_substrate", never)
    assert prepare(config(corpus), Storage(prepared.job.run_dir)).job == prepared.job


def test_a_run_beside_it_shares_the_packed_data(prepared: Prepared, home: Path, corpus: str) -> None:
    plan = {"grow": {"blocks": 3}, "train": {"steps": 3}}
    beside = prepare(config(corpus, plan=plan, seed=5), Storage(str(home / "second"))).job
    assert (beside.packed_path, beside.data_fingerprint) == (prepared.job.packed_path, prepared.job.data_fingerprint)
    assert beside.substrate == prepared.job.substrate
    assert beside.config_fingerprint != prepared.job.config_fingerprint


def test_a_budget_that_cannot_be_met_is_refused_before_the_data_is_packed(home: Path, corpus: str) -> None:
    plan = {"grow": {"blocks": 2}, "train": {"steps": 3}, "budget": {"active_parameters": 1000}}
    cache = home / "no-cache"
    with pytest.raises(BudgetError, match=r"plan\.budget\.active_parameters=1000: stage 1 \(depth-1\) would train"):
        prepare(config(corpus, plan=plan, cache_dir=str(cache)), Storage(str(home / "poor")))
    assert not (cache / "packed").exists()


@pytest.mark.parametrize(("name", "problem"), [("nowhere-*.txt", "nowhere-"), ("empty.txt", "'empty' has no text")])
def test_a_missing_or_empty_corpus_is_a_sentence(name: str, problem: str, home: Path) -> None:
    (home / "empty.txt").write_text("")
    with pytest.raises(DataError) as caught:
        prepare(config(str(home / name)), Storage(str(home / "none")))
    assert problem in str(caught.value) and caught.value.remedy


def test_a_run_continues_another_one_from_its_last_stage(finished_run: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "context_length": 32}
    continued = config(corpus, parent=str(finished_run), model=shape)
    job = prepare(continued, Storage(str(tmp_path / "next"))).job
    assert [(stage.index, stage.name, stage.num_blocks) for stage in job.stages] == [
        (4, "depth-3", 3),
        (5, "depth-4", 4),
    ]
    assert job.num_stages == 5 and job.stage_weights[:3] == (0.0, 0.0, 0.0)
    substrate = BlobStore(job.run_dir).get(job.substrate.blob)[SUBSTRATE_KEY]
    assert torch.equal(substrate, BlobStore(str(finished_run)).get(job.substrate.blob)[SUBSTRATE_KEY])


@pytest.mark.parametrize(
    ("key", "value"), [("num_attention_heads", 4), ("context_length", 16), ("substrate_reinjection", True)]
)
def test_a_run_does_not_continue_another_one_in_another_shape(
    key: str, value: Any, finished_run: Path, tmp_path: Path
) -> None:
    shape = {"hidden_size": 16, "num_attention_heads": 2, "context_length": 32, key: value}
    name = "max_position_embeddings" if key == "context_length" else key
    with pytest.raises(ConfigError, match=rf"parent=.* has {name}=\w+, but the configuration gives {value}"):
        prepare(config(write_corpus(tmp_path), parent=str(finished_run), model=shape), Storage(str(tmp_path / "next")))


def test_a_vocabulary_is_made_from_what_is_not_held_out(
    home: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def listening(settings: Any, texts: Iterable[str], data: Any) -> Any:
        given.extend(texts)
        return build_tokenizer(settings, given, data)

    monkeypatch.setattr("growtx.run.prepare.build_tokenizer", listening)
    prepare(config(corpus), Storage(str(home / "listening")))
    documents = list(iterate_documents(config(corpus).data))
    assert {document.split for document in documents} == {"train", "validation"}
    assert given == [document.text for document in documents if document.split == "train"]


def test_a_run_does_not_continue_another_one_on_a_different_tokenizer(run_dir: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    first = prepare(config(corpus), Storage(str(tmp_path / "first")))  # has a tokenizer of its own
    first.tokenizer.save_pretrained(str(run_dir / "tokenizer"))
    with pytest.raises(FingerprintError, match="the tokenizer is a different one"):
        prepare(config(corpus, parent=str(run_dir)), Storage(str(tmp_path / "next")))


def test_a_substrate_that_does_not_fit_the_tokenizer_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    prepare(config(corpus), Storage(str(tmp_path / "run")))
    (tmp_path / "run/tokenizer/tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="has 275 rows, but its tokenizer has 280 tokens"):
        prepare(config(corpus, tokenizer={"vocab_size": 280}), Storage(str(tmp_path / "run")))


def test_of_each_source_is_packed_what_the_stages_with_weights_of_their_own_draw(corpus: str) -> None:
    plan = {"stages": [{"data": {"one": 1}}, {"data": {"one": 1, "two": 3}}, {}], "train": {"steps": 8}}
    sources = [{"files": corpus, "name": name, "weight": 1} for name in ("one", "two")]
    made = config(corpus, plan=plan, data={"sources": sources, "validation_fraction": 0.2})
    need = _need(made, resolve(made.plan), None)
    assert (need.num_train, need.num_train_of) == (96, (32 + 8 + 16, 24 + 16))
    assert need.of(made.data, 0).num_train == 56 + 2 and need.of(made.data, 1).num_train == 40 + 2
    plain = config(corpus, plan={**plan, "stages": [{}, {}, {}]}, data={"sources": sources, "validation_fraction": 0.2})
    assert _need(plain, resolve(plain.plan), None).num_train_of is None
