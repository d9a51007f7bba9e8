"""Ensembles on disk: kilobytes that name members by hash, load exactly, change without touching other members."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from growtx.cli.main import main
from growtx.exceptions import ConfigError, CorruptBlobError, FingerprintError, GrowtxError, StoreError
from growtx.growth.ensembles import (
    assemble_ensemble,
    changed_ensemble,
    load_ensemble,
    new_ensemble,
    read_ensemble,
    verify_ensemble,
    write_ensemble,
)
from growtx.growth.lineage import open_lineage
from growtx.growth.results import load_model
from growtx.models import GrowtxEnsembleForCausalLM
from growtx.storage import Storage
from growtx.store.blobs import BlobStore, blob_path
from growtx.store.manifest import write_manifest
from tests import tiny
from tests.models.ensemble.taking_apart import member_of

# Drawn and disturbed alike, so that they share lower blocks.
PLANS: dict[str, Any] = {"en": [{"add": 1}, {"add": 1}], "ru": [{"add": 1}, {"add": 2}], "zh": [{"add": 2}]}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Three specialists. Read-only."""
    root = tmp_path_factory.mktemp("specialists")
    for name, stages in PLANS.items():
        tiny.write_run(root / name, tokenizer, {"stages": stages})
    return root


@pytest.fixture
def home(grown: Path, tmp_path: Path) -> Path:
    """A copy of the specialists to damage, with the ensemble of all three beside them."""
    root = Path(shutil.copytree(grown, tmp_path / "home"))
    write(root / "merged", *PLANS)
    return root


def write(out: Path, *names: str, rule: str = "mean") -> GrowtxEnsembleForCausalLM:
    manifest = new_ensemble(str(out), {name: str(out.parent / name) for name in names}, rule=rule)
    ensemble, _ = assemble_ensemble(str(out), manifest)
    write_ensemble(str(out), manifest, ensemble)
    return ensemble


def rewrite(out: Path, source: Path, runs: dict[str, str] | None = None, without: tuple[str, ...] = ()) -> None:
    manifest = changed_ensemble(str(source), str(out), runs, without=without)
    write_ensemble(str(out), manifest, assemble_ensemble(str(out), manifest)[0])


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def members(path: Path) -> dict[str, torch.Tensor]:
    """Every member's logits, computed inside the ensemble."""
    ensemble, _ = load_ensemble(str(path))
    return {name: tiny.logits(member_of(ensemble, name)) for name in ensemble.config.member_names or []}


def test_an_ensemble_is_loaded_by_any_of_its_paths_and_averages_its_members(home: Path) -> None:
    expected = sum(tiny.logits(load_model(str(home / name))[0]) for name in PLANS) / 3
    for path in ("merged", "merged/", "merged/ensemble.json"):
        model, tokenizer = load_model(f"{home}/{path}")
        assert isinstance(model, GrowtxEnsembleForCausalLM) and not model.training
        assert torch.allclose(tiny.logits(model), expected, atol=1e-5) and len(tokenizer) == tiny.VOCAB_SIZE
    assert model.config.blocks_of_members == [[0, 1], [0, 1, 2], [0, 3]]  # shared blocks are there once


def test_an_ensemble_costs_its_manifest_and_nothing_else(home: Path) -> None:
    before = {name: files(home / name) for name in PLANS}
    again = home / "again"
    write(again, *PLANS)
    assert {name: files(home / name) for name in PLANS} == before
    assert list(files(again)) == ["ensemble.json"] and (again / "ensemble.json").stat().st_size < 2000


def test_members_beside_the_ensemble_move_with_it(home: Path, tmp_path: Path) -> None:
    assert [member.run for member in read_ensemble(str(home / "merged")).members] == ["../en", "../ru", "../zh"]
    before = members(home / "merged")
    moved = home.rename(tmp_path / "elsewhere")
    assert all(torch.equal(logits, before[name]) for name, logits in members(moved / "merged").items())


def test_members_elsewhere_are_named_in_full_and_those_below_by_name(home: Path, tmp_path: Path) -> None:
    manifest = new_ensemble(str(tmp_path / "far/away"), {"en": str(home / "en")})
    assert manifest.members[0].run == str(home / "en")
    assert new_ensemble(str(home), {"en": str(home / "en")}).members[0].run == "en"


def test_what_a_rule_has_learned_is_loaded_again(home: Path) -> None:
    out = home / "fitted"
    manifest = new_ensemble(str(out), {name: str(home / name) for name in PLANS}, rule="weighted-mean")
    ensemble, _ = assemble_ensemble(str(out), manifest)
    with torch.no_grad():
        ensemble.rule.member_weights.copy_(torch.tensor([0.2, 0.3, 0.7]))  # type: ignore[operator, union-attr]
    write_ensemble(str(out), manifest, ensemble)
    again, _ = load_ensemble(str(out))
    assert again.rule.name == "weighted-mean" and torch.equal(tiny.logits(again), tiny.logits(ensemble))
    assert len(files(out)) == 2 and sum(map(len, files(out).values())) < 5000


def test_a_member_stays_at_the_stage_that_was_merged(home: Path) -> None:
    before = members(home / "merged")
    parent = open_lineage(str(home / "zh")).last
    stage = tiny.stages(stages=[{"add": 2}, {"add": 1}])[1]
    store = BlobStore(str(home / "zh"))
    tiny.write_stage(store, stage, tiny.config_like(parent, 3), parent.substrate, parent)
    assert torch.equal(members(home / "merged")["zh"], before["zh"])


@pytest.mark.parametrize("change", ["add", "remove", "replace"])
def test_other_members_are_bit_identical_after_a_change(change: str, home: Path) -> None:
    before, stored = members(home / "merged"), {name: files(home / name) for name in PLANS}
    newcomer = {"name": "de", "run": str(home / "zh")} if change == "add" else {"name": "zh", "run": str(home / "ru")}
    if change == "remove":
        rewrite(home / "changed", home / "merged", without=("zh",))
    else:
        rewrite(home / "changed", home / "merged", {newcomer["name"]: newcomer["run"]})
    after = members(home / "changed")
    expected = {"add": ["en", "ru", "zh", "de"], "remove": ["en", "ru"], "replace": ["en", "ru", "zh"]}
    assert list(after) == expected[change]
    untouched = set(before) & set(after) - ({"zh"} if change == "replace" else set())
    assert all(torch.equal(before[name], after[name]) for name in untouched)
    assert torch.equal(after["zh"], before["ru"]) if change == "replace" else True
    assert {name: files(home / name) for name in PLANS} == stored
    pinned = {member.name: member.digest for member in read_ensemble(str(home / "merged")).members}
    now = {member.name: member.digest for member in read_ensemble(str(home / "changed")).members}
    assert all(pinned[name] == now[name] for name in untouched)


def test_a_change_forgets_what_the_rule_had_learned(home: Path) -> None:
    write(home / "fitted", *PLANS, rule="mixture")
    rewrite(home / "fitted", home / "fitted", without=("zh",))
    manifest = read_ensemble(str(home / "fitted"))
    assert manifest.rule == {"name": "mixture"} and manifest.names == ["en", "ru"]
    assert load_ensemble(str(home / "fitted"))[0].rule.num_members == 2


def test_a_change_that_cannot_be_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"no member fr\. Its members are en, ru, zh"):
        changed_ensemble(str(home / "merged"), str(home / "x"), without=("fr",))
    with pytest.raises(ConfigError, match="no member would be left"):
        changed_ensemble(str(home / "merged"), str(home / "x"), without=tuple(PLANS))
    with pytest.raises(ConfigError, match="at least one member"):
        new_ensemble(str(home / "x"), {})


def change_bytes(home: Path) -> None:
    path = home / "ru" / blob_path(open_lineage(str(home / "ru")).last.head)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def change_manifest(home: Path) -> None:
    path = next((home / "ru/manifests").glob("02-*.json"))
    path.write_text(path.read_text().replace('"ended_by": "steps"', '"ended_by": "tokens"'))


def put_nan(home: Path) -> None:
    """Weights that diverged, sealed as if nothing were wrong, and merged."""
    run = home / "ru"
    last = open_lineage(str(run)).last
    head = BlobStore(str(run)).get(last.head)
    head["lm_head.bias"][3] = float("nan")
    write_manifest(Storage(str(run)), last.model_copy(update={"head": BlobStore(str(run)).put(head)}))
    manifest = new_ensemble(str(home / "merged"), {name: str(home / name) for name in PLANS})
    (home / "merged/ensemble.json").write_text(manifest.model_dump_json())


def other_vocabulary(home: Path) -> None:
    run = home / "ru"
    last = open_lineage(str(run)).last
    model = last.model | {"tokenizer_fingerprint": "f" * 64}
    write_manifest(Storage(str(run)), last.model_copy(update={"tokenizer_fingerprint": "f" * 64, "model": model}))
    manifest = new_ensemble(str(home / "merged"), {name: str(home / name) for name in PLANS})
    (home / "merged/ensemble.json").write_text(manifest.model_dump_json())


DAMAGES: dict[str, tuple[Callable[[Path], Any], type[GrowtxError], str]] = {
    "missing": (lambda home: shutil.rmtree(home / "ru"), StoreError, "member ru: .*/ru.* there is no such run"),
    "corrupt": (change_bytes, CorruptBlobError, "member ru: blob .* is corrupt"),
    "changed": (
        change_manifest,
        StoreError,
        "member ru: manifest 02-depth-3.json .* is not the one that was",
    ),
    "nan": (put_nan, StoreError, "specialist ru has values that are not finite in lm_head.bias"),
    "vocabulary": (other_vocabulary, FingerprintError, "member ru: .*tokenizer is a different one"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_a_member_is_one_sentence(
    damage: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply, error, sentence = DAMAGES[damage]
    apply(home)
    with pytest.raises(error, match=sentence):
        load_model(str(home / "merged"))
    (problem,) = verify_ensemble(str(home / "merged"))
    assert "ru" in problem
    assert main(["verify", str(home / "merged")]) == 1
    assert problem in capsys.readouterr().out


def test_verify_says_that_an_ensemble_is_intact(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_ensemble(str(home / "merged")) == []
    assert main(["verify", f"{home}/merged/ensemble.json"]) == 0
    assert capsys.readouterr().out.startswith("intact: 3 members")


def test_learned_tensors_that_are_damaged_are_found(home: Path) -> None:
    write(home / "fitted", *PLANS, rule="mixture")
    blob = next((home / "fitted/blobs").rglob("*.safetensors"))
    save_file({"log_prior": torch.ones(3)}, blob)
    assert verify_ensemble(str(home / "fitted")) == [f"rule mixture: blob {blob.stem} is missing or corrupt"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is damaged: it is not JSON"),
        ('{"format_version": 9}', "format version 9"),
        ('{"format_version": 1, "members": []}', "is damaged: members"),
    ],
)
def test_a_damaged_ensemble_file_is_a_sentence(text: str, sentence: str, home: Path) -> None:
    (home / "merged/ensemble.json").write_text(text)
    with pytest.raises(StoreError, match=sentence):
        load_model(str(home / "merged"))


def test_an_ensemble_has_no_depths(home: Path) -> None:
    with pytest.raises(StoreError, match="is an ensemble and has no stage of depth 1"):
        load_model(str(home / "merged"), depth=1)


def test_the_file_names_every_member_by_hash(home: Path) -> None:
    tree = json.loads((home / "merged/ensemble.json").read_text())
    assert [member["name"] for member in tree["members"]] == list(PLANS)
    assert tree["members"][0]["digest"] == open_lineage(str(home / "en")).last.digest()
