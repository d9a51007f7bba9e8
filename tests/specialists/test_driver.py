"""Specialists before and after training, without a cluster: what they share, the control's length, tuning, resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from growtx.exceptions import ConfigError, GrowtxError, TrainingError
from growtx.growth.assembly import SUBSTRATE_KEY
from growtx.growth.ensembles import read_ensemble
from growtx.growth.flops import stage_flops
from growtx.growth.lineage import open_lineage
from growtx.growth.results import load_model
from growtx.models.counting import monolithic_flops
from growtx.run.pool import PoolResult, TrainTask
from growtx.specialists import driver
from growtx.specialists.driver import TUNED_DIR, grow_specialists, merge_all, prepare_tasks, prepare_trunk
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.store.manifest import latest_manifest
from tests.specialists.conftest import config, quiet, trained


def test_all_stand_on_one_tokenizer_and_substrate_made_of_all_data(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    tasks = prepare_tasks(config(tmp_path, cache_dir=str(tmp_path / "cache")), run)
    jobs = [task.jobs[0] for task in tasks]
    assert [task.name for task in tasks] == ["one", "two"]
    assert len({job.architecture["tokenizer_fingerprint"] for job in jobs}) == 1
    assert len({job.substrate.blob for job in jobs}) == 1 and len({job.packed_path for job in jobs}) == 2
    for job in jobs:
        assert SUBSTRATE_KEY in BlobStore(job.run_dir).get(job.substrate.blob)
        assert Path(job.packed_path).is_relative_to(tmp_path / "cache")


def test_the_control_spends_the_flops_of_all_plans(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    tasks = prepare_tasks(config(tmp_path, control=True, plan={"grow": {"blocks": 2}, "train": {"steps": 300}}), run)
    (control,) = (task.jobs[0] for task in tasks if task.name == "control")
    (stage,) = control.stages
    assert (stage.num_blocks, stage.num_active) == (2, 2)
    spent = control.num_tokens(stage)
    spent_flops = spent * monolithic_flops(control.model_at(2), 32).total
    assert spent_flops == pytest.approx(sum(sum(task.jobs[0].stage_weights) for task in tasks[:2]), rel=0.01)


def test_heads_are_tuned_after_the_plan_on_the_data_of_all(tmp_path: Path) -> None:
    settings = {"tokens": 256, "learning_rate": 5e-4}
    tasks = prepare_tasks(config(tmp_path, tune_heads=settings), Storage(str(tmp_path / "run")))
    for task in tasks:
        own, tuning = task.jobs
        (stage,) = tuning.stages
        assert (stage.name, stage.index, stage.add, stage.num_active, stage.head) == ("tune-2", 3, 0, 0, True)
        assert (stage.train.tokens, stage.train.steps, stage.train.learning_rate) == (256, None, 5e-4)
        assert tuning.packed_path != own.packed_path and own.num_stages == tuning.num_stages == 3
    assert tasks[0].jobs[1].packed_path == tasks[1].jobs[1].packed_path


def test_specialists_share_the_blobs_of_a_common_parent(tmp_path: Path) -> None:
    first = config(tmp_path)
    parent = prepare_tasks(first, Storage(str(tmp_path / "first")))[0].jobs[0]
    trained(parent)
    plan = {"stages": [{"add": 1}], "train": {"steps": 2}}
    tasks = prepare_tasks(config(tmp_path, parent=parent.run_dir, plan=plan), Storage(str(tmp_path / "next")))
    for task in tasks:
        (stage,) = task.jobs[0].stages
        assert (stage.index, stage.num_blocks_before, stage.num_blocks) == (3, 2, 3)
        trained(task.jobs[0])
    last = [latest_manifest(Storage(task.jobs[0].run_dir)) for task in tasks]
    assert last[0] is not None and last[1] is not None and last[0].blocks[:2] == last[1].blocks[:2]


def test_a_run_leaves_merges_and_resuming_repeats_nothing(tmp_path: Path, without_cluster: list[str]) -> None:
    run_dir = str(tmp_path / "run")
    given = config(tmp_path, control=True, tune_heads={"tokens": 256})
    result = grow_specialists(given, run_dir, console=quiet())
    assert without_cluster == ["one", "two", "control"] and len(result.merges) == 2
    grown, tuned = (read_ensemble(f"{run_dir}/{name}") for name in ("ensemble", TUNED_DIR))
    assert [member.manifest for member in grown.members] == ["02-depth-2.json"] * 2
    assert [member.manifest for member in tuned.members] == ["03-tune-2.json"] * 2
    assert [member.run for member in tuned.members] == ["../specialists/one", "../specialists/two"]
    assert "control" in result.merges[0].scores.kinds
    untuned, after = (Path(merged.report).read_text() for merged in result.merges)
    assert "What tuning the heads changed" in after and "What tuning the heads changed" not in untuned
    again = grow_specialists(given, run_dir, resume=True, console=quiet())
    assert without_cluster == ["one", "two", "control"] and again.merges == ()


TRUNK = {"plan": {"grow": {"blocks": 1}, "train": {"steps": 4}}}
BRANCH = {"grow": {"blocks": 1}, "train": {"steps": 3}}


def test_all_branch_from_a_trunk_that_is_grown_once(tmp_path: Path, without_cluster: list[str]) -> None:
    run_dir = tmp_path / "run"
    given = config(tmp_path, control=True, tune_heads={"tokens": 256}, trunk=TRUNK, plan=BRANCH)
    result = grow_specialists(given, str(run_dir), console=quiet())
    assert without_cluster == ["trunk", "one", "two", "control"] and len(result.merges) == 2
    trunk, *members = (
        open_lineage(str(run_dir / name)).last for name in ("trunk", "specialists/one", "specialists/two")
    )
    assert (trunk.index, trunk.num_blocks) == (1, 1) and (run_dir / "trunk/model/config.json").exists()
    for member in members:
        assert (member.index, member.num_blocks) == (3, 2), "the branch, and after it the tuned head"
        assert member.blocks[0] == trunk.blocks[0] and member.blocks[1] != trunk.blocks[0]
    ensemble = load_model(str(run_dir / "ensemble"))[0]
    assert [blocks[0] for blocks in ensemble.config.member_blocks] == [0, 0], "the trunk's block is there once"
    kinds = result.merges[0].scores.kinds
    assert kinds["trunk"] == "trunk" and kinds["control"] == "control"
    page = Path(result.merges[0].report).read_text()
    assert "What the trunk gave, and what the branches" in page and "What the merge gained" in page
    again = grow_specialists(given, str(run_dir), resume=True, console=quiet())
    assert without_cluster == ["trunk", "one", "two", "control"] and again.merges == ()


def test_the_control_spends_the_flops_of_the_trunk_once_and_of_all_branches(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    given = config(tmp_path, control=True, trunk=TRUNK, plan={"grow": {"blocks": 1}, "train": {"steps": 30}})
    (trunk,) = prepare_trunk(given, run)
    trained(trunk.jobs[0])
    *members, control = (task.jobs[0] for task in prepare_tasks(given, run))
    (stage,) = control.stages
    assert (stage.num_blocks, stage.num_active) == (2, 2)
    first = latest_manifest(run.child("trunk"))
    assert first is not None and first.num_tokens == 1000
    shape, (grown,) = trunk.jobs[0].model_at(1), trunk.jobs[0].stages
    wanted = stage_flops(shape, grown).total * 1000 + sum(sum(job.stage_weights) for job in members)
    spent = control.num_tokens(stage) * monolithic_flops(control.model_at(2), 32).total
    assert spent == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("where", ["", "/manifests/02-depth-2.json"])
def test_an_existing_run_can_be_the_trunk_and_is_taken_over_as_it_is(
    tmp_path: Path, without_cluster: list[str], where: str
) -> None:
    trained(prepare_tasks(config(tmp_path), Storage(str(tmp_path / "first")))[0].jobs[0])
    source, run = tmp_path / "first/specialists/one", tmp_path / "run"
    given = config(tmp_path, trunk={"run": f"{source}{where}"}, plan=BRANCH, control=True)
    grow_specialists(given, str(run), console=quiet())
    assert without_cluster == ["one", "two", "control"]
    taken, member, control = (open_lineage(str(run / n)) for n in ("trunk", "specialists/two", "control"))
    assert taken.last.digest() == open_lineage(str(source)).last.digest()
    assert member.last.blocks[:2] == taken.last.blocks and member.last.num_blocks == control.last.num_blocks == 3
    assert control.last.tokenizer_fingerprint == taken.last.tokenizer_fingerprint
    shutil.rmtree(source)
    grow_specialists(given, str(run), resume=True, console=quiet())
    assert without_cluster == ["one", "two", "control"], "the run that was taken over is not needed any more"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"tokenizer": {"vocab_size": 300}},
            "was grown with tokenizer.vocab_size=275, but the configuration gives 300",
        ),
        ({"substrate": {"kind": "glyph"}}, "was grown with substrate.kind=binary, but the configuration gives glyph"),
        ({"model": {"hidden_size": 64, "num_attention_heads": 2, "context_length": 32}}, "model.hidden_size=32"),
        ({"trunk": {"run": "nowhere"}}, "there is no such run"),
    ],
)
def test_a_run_that_was_grown_on_something_else_is_no_trunk(
    tmp_path: Path, without_cluster: list[str], changes: dict[str, Any], sentence: str
) -> None:
    trained(prepare_tasks(config(tmp_path), Storage(str(tmp_path / "first")))[0].jobs[0])
    source = tmp_path / "first/specialists/one"
    given = config(tmp_path, **{"trunk": {"run": str(source)}, **changes})
    with pytest.raises(GrowtxError, match=sentence):
        grow_specialists(given, str(tmp_path / "run"), console=quiet())
    assert without_cluster == [] and not (tmp_path / "run/trunk/manifests").exists()


def test_a_trunk_that_stops_is_continued_before_anything_branches(
    tmp_path: Path, without_cluster: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed = driver.train_concurrently
    monkeypatch.setattr(driver, "train_concurrently", lambda tasks, **_: PoolResult(stopped=True))
    given = config(tmp_path, trunk=TRUNK, plan=BRANCH)
    result = grow_specialists(given, str(tmp_path / "run"), console=quiet())
    assert result.stopped and result.merges == () and not (tmp_path / "run/specialists").exists()
    states = {name: json.loads((tmp_path / f"run/{name}status.json").read_text())["state"] for name in ("", "trunk/")}
    assert states == {"": "stopped", "trunk/": "stopped"}
    monkeypatch.setattr(driver, "train_concurrently", succeed)
    assert len(grow_specialists(given, str(tmp_path / "run"), resume=True, console=quiet()).merges) == 1
    assert without_cluster == ["trunk", "one", "two"]


def test_a_trunk_that_fails_ends_the_run_with_its_reason(
    tmp_path: Path, without_cluster: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = PoolResult(failed={"trunk": TrainingError("the loss is not finite")})
    monkeypatch.setattr(driver, "train_concurrently", lambda tasks, **_: failure)
    with pytest.raises(
        TrainingError, match=r"trunk failed \(trunk: the loss is not finite\)\. No specialist has begun"
    ):
        grow_specialists(config(tmp_path, trunk=TRUNK, plan=BRANCH), str(tmp_path / "run"), console=quiet())


def test_a_branch_that_does_not_fit_on_the_trunk_is_refused_before_the_trunk_is_trained(
    tmp_path: Path, without_cluster: list[str]
) -> None:
    for plan, sentence in (
        (
            {"stages": [{"add": 2, "active": 1}], "train": {"steps": 1}},
            "specialist one: plan, stage 2: active=1: fewer",
        ),
        ({**BRANCH, "budget": {"active_parameters": 10}}, "specialist one: plan.budget.active_parameters=10: stage 2"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            grow_specialists(config(tmp_path, trunk=TRUNK, plan=plan), str(tmp_path / "run"), console=quiet())
    assert without_cluster == []


def test_a_failure_is_reported_and_what_is_finished_stays(
    tmp_path: Path, without_cluster: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed = driver.train_concurrently

    def one_fails(tasks: list[TrainTask], **options: Any) -> PoolResult:
        succeed(tasks[:1], **options)
        return PoolResult(failed={"two": TrainingError("the loss is not finite")})

    monkeypatch.setattr(driver, "train_concurrently", one_fails)
    with pytest.raises(TrainingError, match=r"two failed \(two: the loss is not finite\)\. The others are finished"):
        grow_specialists(config(tmp_path), str(tmp_path / "run"), console=quiet())
    assert (tmp_path / "run/specialists/one/model/config.json").exists() and not (tmp_path / "run/ensemble").exists()
    home = tmp_path / "run/specialists"
    states = {name: json.loads((home / name / "status.json").read_text()) for name in ("one", "two")}
    assert {name: status["state"] for name, status in states.items()} == {"one": "finished", "two": "failed"}
    monkeypatch.setattr(driver, "train_concurrently", succeed)
    grow_specialists(config(tmp_path), str(tmp_path / "run"), resume=True, console=quiet())
    assert without_cluster == ["one", "two"]


def test_a_directory_belongs_to_one_configuration(tmp_path: Path, without_cluster: list[str]) -> None:
    grow_specialists(config(tmp_path), str(tmp_path / "run"), console=quiet())
    with pytest.raises(ConfigError, match="already holds a run"):
        grow_specialists(config(tmp_path), str(tmp_path / "run"), console=quiet())
    with pytest.raises(ConfigError, match="holds another run: seed differ"):
        grow_specialists(config(tmp_path, seed=1), str(tmp_path / "run"), resume=True, console=quiet())


def test_a_member_without_its_last_stage_cannot_be_merged(tmp_path: Path) -> None:
    given = config(tmp_path)
    tasks = prepare_tasks(given, Storage(str(tmp_path / "run")))
    with pytest.raises(ConfigError, match="has no finished stage 2"):
        merge_all(given, Storage(str(tmp_path / "run")), tasks)
