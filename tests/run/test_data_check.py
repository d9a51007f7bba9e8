"""A run goes on with the text that it began with, or is told to go on with another, and says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from growtx.exceptions import ConfigError, DataError
from growtx.run.data_check import accepting_new_data
from growtx.run.prepare import Prepared, prepare
from growtx.storage import Storage
from growtx.store.manifest import Manifest, write_manifest
from growtx.store.run_records import DATA_FILE, read_data_record
from growtx.store.runs import METRICS_FILE
from tests.run.configs import config, write_corpus
from tests.store.manifests import manifest as make_manifest


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return write_corpus(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def change(corpus: str) -> None:
    """Other words in half of the documents."""
    path = Path(corpus)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.replace("fox", "hen") for line in lines[::2]) + "\n" + "\n".join(lines[1::2]) + "\n")


def train(run: Storage, prepared: Prepared, stage: int = 1) -> Manifest:
    """As if a stage had been trained."""
    written = make_manifest(stage, None, data_fingerprint=prepared.data.fingerprint)
    write_manifest(run, written)
    return written


def hashes(run: Storage) -> dict[str, str]:
    return {file: hashlib.sha256(run.read_bytes(file)).hexdigest() for file in run.list_files()}


def test_the_text_of_a_run_is_recorded_by_source(run: Storage, corpus: str) -> None:
    prepared = prepare(config(corpus), run)
    record = read_data_record(run)
    assert record is not None and record.data_fingerprint == prepared.data.fingerprint
    assert list(record.sources) == ["texts"] and record.changes == ()


def test_before_anything_was_trained_text_may_be_corrected(run: Storage, corpus: str) -> None:
    first = prepare(config(corpus), run)
    change(corpus)
    second = prepare(config(corpus), run)
    record = read_data_record(run)
    assert record is not None and record.data_fingerprint == second.data.fingerprint != first.data.fingerprint


@pytest.mark.parametrize("trained", ["a stage", "steps", "a checkpoint"])
def test_a_run_whose_text_changed_is_refused_and_left_alone(run: Storage, corpus: str, trained: str) -> None:
    prepared = prepare(config(corpus), run)
    if trained == "a stage":
        train(run, prepared)
    else:
        run.write_text(
            METRICS_FILE if trained == "steps" else "checkpoints/stage-01/step-00000001/checkpoint.json", "{}\n"
        )
    before, recorded = hashes(run), read_data_record(run)
    change(corpus)
    with pytest.raises(DataError, match=r"the text of source texts is not what this run was trained on") as caught:
        prepare(config(corpus), run)
    assert recorded is not None and recorded.sources["texts"][:12] in str(caught.value)
    assert "--accept-new-data" in caught.value.remedy
    assert hashes(run) == before


def test_accepting_goes_on_and_says_from_which_stage(run: Storage, corpus: str) -> None:
    train(run, prepare(config(corpus), run))
    change(corpus)
    with accepting_new_data(True, resume=True):
        prepare(config(corpus), run)
    record = read_data_record(run)
    assert record is not None
    (found,) = record.changes
    assert (found.source, found.stage) == ("texts", 2) and found.after == record.sources["texts"] != found.before
    prepare(config(corpus), run)  # accepted once, it is the run's text
    change(corpus)
    with accepting_new_data(True, resume=True):
        prepare(config(corpus), run)
    again = read_data_record(run)
    assert again is not None and len(again.changes) == 2


def test_accepting_without_resuming_is_refused() -> None:
    with pytest.raises(ConfigError, match="Add --resume"), accepting_new_data(True, resume=False):
        pass


def test_a_finished_run_may_be_opened_whatever_became_of_its_text(run: Storage, corpus: str) -> None:
    prepared = prepare(config(corpus), run)
    train(run, prepared, 1)
    train(run, prepared, 2)
    change(corpus)
    prepare(config(corpus), run)
    record = read_data_record(run)
    assert record is not None and record.data_fingerprint == prepared.data.fingerprint


def test_moved_and_touched_files_are_no_change(run: Storage, corpus: str, tmp_path: Path) -> None:
    train(run, prepare(config(corpus), run))
    (tmp_path / "elsewhere").mkdir()
    moved = Path(corpus).rename(tmp_path / "elsewhere" / "texts.jsonl")
    moved.touch()
    prepare(config(str(moved)), run)


def test_a_file_that_a_glob_now_finds_is_a_change(run: Storage, corpus: str, tmp_path: Path) -> None:
    pattern = str(tmp_path / "*.jsonl")
    train(run, prepare(config(pattern), run))
    (tmp_path / "zz.jsonl").write_text(json.dumps({"text": "a new document that nobody knew"}) + "\n")
    with pytest.raises(DataError, match="is not what this run was trained on"):
        prepare(config(pattern), run)


def test_a_run_from_before_the_record_is_compared_with_its_newest_manifest(run: Storage, corpus: str) -> None:
    train(run, prepare(config(corpus), run))
    run.remove(DATA_FILE)
    prepare(config(corpus), run)
    run.remove(DATA_FILE)
    change(corpus)
    with pytest.raises(DataError, match=r"source \(all sources\) is not what this run was trained on"):
        prepare(config(corpus), run)


def test_a_damaged_record_is_a_sentence(run: Storage, corpus: str) -> None:
    train(run, prepare(config(corpus), run))
    for damage in ("", "{", "[]", '{"sources": 3}', "[" * 5000):
        run.write_text(DATA_FILE, damage)
        with pytest.raises(Exception, match=r"data.json is damaged"):
            prepare(config(corpus), run)


def test_a_parent_that_grew_meanwhile_is_continued_from_where_it_was(run_dir: Path, run: Storage, corpus: str) -> None:
    shape = {"hidden_size": 16, "num_attention_heads": 2, "context_length": 32}
    continued = config(corpus, parent=str(run_dir), model=shape)
    last = sorted((run_dir / "manifests").glob("0*.json"))[-1]
    hidden = last.rename(run_dir / "later.json")
    (run_dir / "manifests" / "latest").unlink(missing_ok=True)
    first = prepare(continued, run).job
    hidden.rename(last)
    assert prepare(continued, run).job.stages == first.stages
