"""Lineages: a result is found by any of its paths, loaded verified, and continued in another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import growtx
from growtx.exceptions import CorruptBlobError, DataError, FingerprintError, StoreError
from growtx.growth.lineage import import_lineage, open_lineage
from growtx.growth.results import load_model
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.store.manifest import list_manifests
from growtx.store.verify import verify
from tests import tiny


def test_a_run_directory_is_loaded_at_its_last_stage_or_at_any_depth(finished_run: Path) -> None:
    model, tokenizer = growtx.load_model(str(finished_run))
    assert model.config.num_hidden_layers == 2 and not model.training
    assert len(tokenizer) == model.config.vocab_size == tiny.VOCAB_SIZE
    shallow, _ = load_model(str(finished_run), depth=1)
    assert shallow.config.num_hidden_layers == 1
    newest, _ = load_model(str(finished_run), depth=2)  # two stages have this depth
    assert torch.equal(tiny.logits(newest), tiny.logits(model))


def test_a_manifest_is_loaded_at_its_own_stage(finished_run: Path) -> None:
    before, _ = load_model(f"{finished_run}/manifests/02-depth-2.json")
    after, _ = load_model(f"{finished_run}/manifests/03-tune-2.json")
    last, _ = load_model(f"{finished_run}/")
    assert torch.equal(tiny.logits(after), tiny.logits(last))
    assert not torch.equal(tiny.logits(before), tiny.logits(last))


def test_paths_may_be_relative(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished_run)
    assert len(open_lineage(".").manifests) == 3
    assert len(open_lineage("manifests/01-depth-1.json").manifests) == 1
    assert len(open_lineage("./manifests/02-depth-2.json").manifests) == 2


def test_a_hugging_face_directory_is_loaded_as_the_model_it_was_saved_from(finished_run: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(finished_run))
    for half in (False, True):
        directory = str(tmp_path / f"hf-{half}")
        (model.bfloat16() if half else model).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        again, _ = load_model(directory)
        assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
        assert torch.equal(tiny.logits(again), tiny.logits(model.float()))
    with pytest.raises(StoreError, match="is a Hugging Face directory of 2 blocks, not 1"):
        load_model(directory, depth=1)


def test_a_damaged_hugging_face_directory_is_a_sentence(finished_run: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(finished_run))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(StoreError, match="cannot be loaded"):
        load_model(str(tmp_path))


def tamper(directory: Path) -> None:
    """Give two tokens each other's number."""
    path = directory / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tree))


def test_a_tampered_tokenizer_is_refused(run_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(run_dir))
    tamper(run_dir / "tokenizer")
    with pytest.raises(FingerprintError, match=f"{run_dir}/tokenizer: the tokenizer is a different one"):
        load_model(str(run_dir))
    directory = tmp_path / "hf"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    tamper(directory)
    with pytest.raises(FingerprintError, match="the tokenizer is a different one"):
        load_model(str(directory))


def test_a_tokenizer_that_is_gone_is_a_sentence(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "tokenizer")
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        load_model(str(run_dir))


def test_a_damaged_blob_is_refused_whatever_the_path(run_dir: Path) -> None:
    blob = open_lineage(str(run_dir)).last.blocks[0].blob
    path = next(run_dir.rglob(f"{blob}.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    for place in (run_dir, run_dir / "manifests/01-depth-1.json"):
        with pytest.raises(CorruptBlobError, match=blob):
            load_model(str(place))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nothing", "nothing: there is no such run. Give a run directory, a manifest or a Hugging Face directory."),
        (".", "has no finished stage"),
        ("nothing/manifests/01-x.json", "there is no such run"),
        ("run/manifests/09-x.json", "run/manifests/09-x.json: there is no such file"),
    ],
)
def test_a_path_without_a_result_is_a_sentence(run_dir: Path, path: str, problem: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_lineage(f"{run_dir.parent}/{path}")
    assert problem in str(caught.value)


def test_a_depth_that_was_never_grown_is_refused_with_those_that_were(finished_run: Path) -> None:
    with pytest.raises(StoreError, match=r"has no stage of depth 7\. Its depths are 1, 2\."):
        load_model(str(finished_run), depth=7)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_an_imported_lineage_is_whole_and_importing_it_again_changes_nothing(
    finished_run: Path, tmp_path: Path
) -> None:
    target = Storage(str(tmp_path / "next"))
    last = import_lineage(str(finished_run), target)
    assert last == open_lineage(target.root).last and len(open_lineage(target.root).manifests) == 3
    assert verify(target.root).is_intact and not verify(target.root).orphans
    model, _ = load_model(target.root)
    assert torch.equal(tiny.logits(model), tiny.logits(load_model(str(finished_run))[0]))
    before = files(tmp_path / "next")
    assert import_lineage(str(finished_run), target) == last and files(tmp_path / "next") == before


def test_a_lineage_is_imported_up_to_the_named_manifest(finished_run: Path, tmp_path: Path) -> None:
    target = Storage(str(tmp_path / "next"))
    import_lineage(f"{finished_run}/manifests/01-depth-1.json", target)
    assert list_manifests(target) == ["01-depth-1.json"]
    assert len(BlobStore(target.root).list()) == 3


def test_importing_again_keeps_the_stages_that_were_grown_since(finished_run: Path, tmp_path: Path) -> None:
    target = Storage(str(tmp_path / "next"))
    import_lineage(f"{finished_run}/manifests/01-depth-1.json", target)
    parent = open_lineage(target.root).last
    stage = tiny.stages(stages=[{"add": 1}, {"name": "mine", "add": 1}])[1]
    mine = tiny.write_stage(BlobStore(target.root), stage, tiny.config(2), parent.substrate, parent)
    import_lineage(f"{finished_run}/manifests/01-depth-1.json", target)
    assert open_lineage(target.root).last == mine


def test_a_lineage_whose_first_stage_trained_the_substrate_is_imported_whole(tmp_path: Path, tokenizer: Any) -> None:
    tiny.write_run(tmp_path / "run", tokenizer, {"stages": [{"add": 1, "train_substrate": True}, {"add": 1}]})
    target = Storage(str(tmp_path / "next"))
    import_lineage(str(tmp_path / "run"), target)
    assert verify(target.root).is_intact
    record = json.loads(target.read_text("substrate.json"))
    assert (
        BlobStore(target.root).is_intact(record["blob"]) and record["blob"] != open_lineage(target.root).last.substrate
    )


def test_importing_what_is_damaged_leaves_no_manifest(run_dir: Path, tmp_path: Path) -> None:
    next((run_dir / "blobs").rglob("*.safetensors")).write_bytes(b"damaged")
    target = Storage(str(tmp_path / "next"))
    with pytest.raises(CorruptBlobError):
        import_lineage(str(run_dir), target)
    assert list_manifests(target) == []
