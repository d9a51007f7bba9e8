"""What is added to merged specialists leaves everything old as it was, proves it, and can be taken back."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growtx.cli.main import main
from growtx.exceptions import ConfigError, GrowtxError, StoreError, TrainingError
from growtx.growth.ensembles import read_ensemble
from growtx.growth.lineage import open_lineage
from growtx.growth.results import load_model
from growtx.merge.scores import Measured, MergeScores
from growtx.run.pool import PoolResult
from growtx.specialists import driver
from growtx.specialists.additions import (
    _measured,
    _refusal,
    add_member,
    in_service,
    read_additions,
    receipt_sentences,
    remove_member,
)
from growtx.specialists.driver import grow_specialists
from growtx.storage import Storage
from tests.run.configs import write_corpus
from tests.specialists.conftest import config, quiet

TRUNK = {"plan": {"grow": {"blocks": 1}, "train": {"steps": 4}}}
BRANCH = {"grow": {"blocks": 1}, "train": {"steps": 3}}


@pytest.fixture
def run_dir(tmp_path: Path, without_cluster: list[str]) -> Path:
    """Two branches of a trunk, merged."""
    given = config(tmp_path, trunk=TRUNK, plan=BRANCH)
    grow_specialists(given, str(tmp_path / "run"), console=quiet())
    without_cluster.clear()
    return tmp_path / "run"


def new_data(tmp_path: Path, name: str, num_documents: int = 70) -> list[str]:
    """Overrides that give a member a text of its own."""
    (tmp_path / name).mkdir(exist_ok=True)
    files = write_corpus(tmp_path / name, num_documents)
    return [f"data={json.dumps({'sources': [{'name': name, 'files': files}], 'validation_fraction': 0.2})}"]


def add(run_dir: Path, name: str, *overrides: str, **options: Any) -> Any:
    return add_member(str(run_dir), name, list(overrides), console=quiet(), **options)


def bytes_below(directory: Path, *without: str) -> dict[str, bytes]:
    """All files but the locks and fences of whoever works there."""
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if not name.startswith(without) and not Path(name).name.startswith((".", "lock", "fence"))
    }


def test_an_addition_touches_nothing_old_and_can_be_taken_back(
    tmp_path: Path, run_dir: Path, without_cluster: list[str]
) -> None:
    run = Storage(str(run_dir))
    before = bytes_below(run_dir)
    first = add(run_dir, "three", *new_data(tmp_path, "three"))
    assert without_cluster == ["three"] and not first.stopped
    assert bytes_below(run_dir, "specialists/three", "added") == before
    assert in_service(run).root == first.ensemble == str(run_dir / "added/01-three")
    assert read_ensemble(first.ensemble).names == ["one", "two", "three"]
    trunk, branch = (open_lineage(str(run_dir / name)).last for name in ("trunk", "specialists/three"))
    assert branch.blocks[0] == trunk.blocks[0] and branch.num_blocks == 2
    assert load_model(first.ensemble)[0].rule.name == "mean"
    receipt = first.receipt
    assert [source.source for source in receipt.old] == ["one", "two"] and [s.source for s in receipt.new] == ["three"]
    assert all(source.is_identical and source.old_route == source.before for source in receipt.old)
    assert receipt.parent == hashlib.sha256((run_dir / "ensemble/ensemble.json").read_bytes()).hexdigest()
    page = Path(first.report).read_text()
    assert page.index("Receipt") < page.index("What the merge gained") and ">old route<" in page

    second = add(run_dir, "four", *new_data(tmp_path, "four", 80), "plan.train.steps=2")
    assert second.ensemble == str(run_dir / "added/02-four") and len(second.receipt.old) == 3
    data = (run_dir / "added/01-three/receipt.json").read_bytes()
    assert second.receipt.parent == hashlib.sha256(data).hexdigest()
    assert open_lineage(str(run_dir / "specialists/four")).last.stage["train"]["steps"] == 2

    with pytest.raises(ConfigError, match=r"four was added after three.*Remove four first"):
        remove_member(str(run_dir), "three")
    assert remove_member(str(run_dir), "four") == first.ensemble
    assert remove_member(str(run_dir), "three") == str(run_dir / "ensemble")
    with pytest.raises(ConfigError, match=r"no addition called three. Nothing was added to it"):
        remove_member(str(run_dir), "three")
    assert (
        read_additions(run) == [] and bytes_below(run_dir, "specialists/three", "specialists/four", "added") == before
    )
    again = add(run_dir, "three", resume=True)
    assert without_cluster == ["three", "four"], "the branch is still there"
    assert again.receipt.old == receipt.old and in_service(run).root == first.ensemble


def test_a_merge_that_loses_old_text_is_refused_and_goes_on_when_more_is_allowed(
    tmp_path: Path, run_dir: Path, without_cluster: list[str]
) -> None:
    run = Storage(str(run_dir))
    with pytest.raises(GrowtxError, match=r"worse than the -1.00% allowed: one .*two .*bits per byte"):
        add(run_dir, "three", *new_data(tmp_path, "three"), max_regression=-0.01)
    assert in_service(run).root == str(run_dir / "ensemble")
    made = run_dir / "added/01-three"
    assert (made / "report.html").exists() and not (made / "ensemble.json").exists()
    assert add(run_dir, "three", resume=True, rule="mixture").receipt.rule == "mixture (fitted)"
    assert without_cluster == ["three"] and in_service(run).root == str(made)


def test_an_addition_that_is_stopped_or_killed_goes_on(
    tmp_path: Path, run_dir: Path, without_cluster: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Storage(str(run_dir))
    succeed = driver.train_concurrently
    monkeypatch.setattr(driver, "train_concurrently", lambda tasks, **_: PoolResult(stopped=True))
    assert add(run_dir, "three", *new_data(tmp_path, "three")).stopped
    with pytest.raises(ConfigError, match=r"already holds a run\. Add --resume to go on with it"):
        add(run_dir, "three", *new_data(tmp_path, "three"))
    monkeypatch.setattr(driver, "train_concurrently", succeed)
    whole = add(run_dir, "three", resume=True)
    assert without_cluster == ["three"]
    (run_dir / "added/01-three/receipt.json").unlink()  # as a kill before the last write leaves it
    assert in_service(run).root == str(run_dir / "ensemble")
    again = add(run_dir, "three", resume=True)
    assert without_cluster == ["three"] and again.receipt.old == whole.receipt.old


def test_a_branch_that_fails_says_so_and_its_directory_may_be_used_again(
    tmp_path: Path, run_dir: Path, without_cluster: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GrowtxError, match="nowhere"):
        add(run_dir, "three", f"data.sources=[{{files: {tmp_path}/nowhere.txt}}]", "data.validation_fraction=0.2")
    add(run_dir, "three", *new_data(tmp_path, "three"))
    failure = PoolResult(failed={"four": TrainingError("the loss is not finite")})
    monkeypatch.setattr(driver, "train_concurrently", lambda tasks, **_: failure)
    with pytest.raises(TrainingError, match=r"four failed .*not finite\)\. What is in service is as it was"):
        add(run_dir, "four", *new_data(tmp_path, "four", 80))
    assert read_ensemble(in_service(Storage(str(run_dir))).root).names == ["one", "two", "three"]


def test_a_run_may_be_moved_between_an_addition_and_its_end(
    tmp_path: Path, run_dir: Path, without_cluster: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed = driver.train_concurrently
    monkeypatch.setattr(driver, "train_concurrently", lambda tasks, **_: PoolResult(stopped=True))
    assert add(run_dir, "three", *new_data(tmp_path, "three")).stopped
    monkeypatch.setattr(driver, "train_concurrently", succeed)
    elsewhere = shutil.copytree(run_dir, tmp_path / "elsewhere")  # this process holds the lock of the first one
    shutil.rmtree(run_dir)
    result = add(elsewhere, "three", resume=True)
    assert without_cluster == ["three"] and in_service(Storage(str(elsewhere))).root == result.ensemble
    grow_specialists(config(tmp_path, trunk=TRUNK, plan=BRANCH), str(elsewhere), resume=True, console=quiet())
    assert without_cluster == ["three"]


def test_text_that_only_an_addition_has_read_is_not_new_either(tmp_path: Path, run_dir: Path) -> None:
    data = new_data(tmp_path, "three")
    add(run_dir, "three", *data)
    with pytest.raises(ConfigError, match="every source of again is one that another member has read"):
        add(run_dir, "again", *data)
    assert read_ensemble(in_service(Storage(str(run_dir))).root).names == ["one", "two", "three"]


def test_what_does_not_belong_together_is_noticed(tmp_path: Path, run_dir: Path) -> None:
    add(run_dir, "three", *new_data(tmp_path, "three"))
    for file, sentence in (
        ("added/01-three/ensemble.json", "is not about .*01-three/ensemble.json"),
        ("ensemble/ensemble.json", "is not about what was in service before it"),
    ):
        data = (run_dir / file).read_text()
        (run_dir / file).write_text(data + "\n")
        with pytest.raises(StoreError, match=sentence):
            read_additions(Storage(str(run_dir)))
        (run_dir / file).write_text(data)
    assert len(read_additions(Storage(str(run_dir)))) == 1


def test_what_cannot_be_added_is_refused_before_anything_is_trained(
    tmp_path: Path, run_dir: Path, without_cluster: list[str]
) -> None:
    data = new_data(tmp_path, "three")
    for name, overrides, sentence in (
        ("one", data, "has a member one already"),
        ("control", data, "none may be called control"),
        ("three", [], "data: required key is missing"),
        ("three", [*data, "data.validation_fraction=0.1"], "must hold out the same data.validation_fraction"),
        ("three", [*data, "steps=3"], "steps"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            add(run_dir, name, *overrides)
    with pytest.raises(ConfigError, match=r"--resume: .*three holds no run. Say what to grow"):
        add(run_dir, "three", resume=True)
    for options, sentence in (
        ({"rule": "median"}, "median is not a combination rule"),
        ({"max_regression": float("nan")}, "--max-regression nan is no share"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            add(run_dir, "three", *data, **options)
    with pytest.raises(ConfigError, match="every source of again is one that another member has read"):
        add(run_dir, "again", *new_data(tmp_path, "one", 60))
    with pytest.raises(ConfigError, match="is no run of `growtx specialists`"):
        add(run_dir / "trunk", "three", *data)
    assert without_cluster == []
    (run_dir / "ensemble/ensemble.json").unlink()
    with pytest.raises(ConfigError, match=r"has no ensemble yet. Finish it: growtx specialists --resume --run-dir"):
        add(run_dir, "three", *data)


def test_a_receipt_counts_old_text_by_its_loss_and_new_text_by_the_share_of_the_gain() -> None:
    def text(**bits: list[float]) -> Measured:
        values = {name.replace("_", " "): np.array(value) for name, value in bits.items()}
        return Measured(values, np.array([10.0, 30.0]))

    domains = {
        "old": text(ensemble_before=[20, 60], old_route=[20, 60], routed=[21, 61], new=[40, 80]),
        "moved": text(ensemble_before=[20, 60], old_route=[21, 59], routed=[20, 60], new=[40, 80]),
        "fresh": text(ensemble_before=[60, 60], old_route=[60, 60], routed=[30, 34], new=[20, 40]),
        "dull": text(ensemble_before=[20, 60], old_route=[20, 60], routed=[21, 61], new=[40, 80]),
    }
    own = {"a": ["old"], "b": ["moved", "old"], "new": ["old", "fresh", "dull"]}
    old, new = _measured(MergeScores({}, domains, "old", own, {}, []), "routed", "new")
    assert [(s.source, s.is_identical) for s in old] == [("moved", False), ("old", True)]
    assert old[1].before == 2.0 and old[1].routed == pytest.approx(82 / 40)
    assert old[1].regression == pytest.approx(0.025)
    assert [s.source for s in new] == ["fresh", "dull"] and new[1].kept is None
    assert (new[0].before, new[0].alone) == (3.0, 1.5) and new[0].kept == pytest.approx((120 - 64) / (120 - 60))
    assert "moved: the old route gives other bits" in str(_refusal("new", old, 0.5))
    assert _refusal("new", old[1:], 0.026) is None
    assert "old 2.50% worse (2.0000 to 2.0500 bits per byte)" in str(_refusal("new", old[1:], 0.005))


def test_the_commands_say_what_was_added_and_what_is_in_service(
    tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["add", str(run_dir), "three", *new_data(tmp_path, "three"), "--max-regression", "0.5"]) == 0
    said = capsys.readouterr().out
    assert f"in service: {run_dir}/added/01-three" in said and "one: identical bits on the old route" in said
    receipt = read_additions(Storage(str(run_dir)))[0].receipt
    assert receipt.max_regression == 0.5 and all(sentence in said for sentence in receipt_sentences(receipt))
    assert main(["inspect", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert f"{run_dir}/trunk" in said and "added three" in said and "three: " in said
    assert main(["verify", str(run_dir)]) == 0
    assert main(["remove", str(run_dir), "three"]) == 0
    assert f"in service: {run_dir}/ensemble" in capsys.readouterr().out
    monkeypatch.setattr(driver, "train_concurrently", lambda tasks, **_: PoolResult(stopped=True))
    assert main(["add", str(run_dir), "four", *new_data(tmp_path, "four", 80)]) == 0
    assert f"continue with: growtx add {run_dir} four --resume" in capsys.readouterr().out
