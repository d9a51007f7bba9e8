"""A run directory belongs to one run: claimed once, resumed by the same configuration, never mixed up."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from growtx.cli.main import parse
from growtx.config import build_config
from growtx.exceptions import ConfigError, FencedError, StoreError, TrainingError
from growtx.fence import take_over
from growtx.run.config import RunConfig, load_run_config
from growtx.run.directory import (
    begin_run,
    claim,
    default_run_dir,
    recorded_config,
    recording_status,
    resolve_run_arguments,
    resumed_config,
    write_status,
)
from growtx.storage import Storage
from growtx.store.manifest import write_manifest
from growtx.store.run_lock import is_locked
from growtx.store.run_records import read_changes, read_status
from growtx.store.runs import list_runs
from growtx.sweep.config import SweepConfig
from tests.run.configs import config, tree
from tests.store.manifests import manifest as make_manifest


def arguments(*words: str) -> argparse.Namespace:
    return parse(["grow", *words])


@pytest.fixture(params=["local", "memory"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4()}/run"


def test_a_claimed_directory_records_the_resolved_configuration_and_its_origin(run_dir: str) -> None:
    storage = claim(run_dir, config("a.txt"), resume=False)
    recorded = recorded_config(storage)
    assert recorded.identity_fields() == config("a.txt").identity_fields() and recorded.model.initializer_range == 0.02
    assert recorded.provenance is not None
    assert {"started", "command", "git_commit", "python", "versions", "cpus"} <= recorded.provenance.keys()
    assert recorded.provenance["versions"].keys() >= {"growtx", "torch", "ray", "deepspeed", "transformers"}


def test_a_directory_that_holds_a_run_is_not_started_again(run_dir: str) -> None:
    claim(run_dir, config("a.txt"), resume=False)
    with pytest.raises(ConfigError, match=r"already holds a run\. Add --resume to continue it, or name another"):
        claim(run_dir, config("a.txt"), resume=False)


def test_a_run_is_resumed_by_its_own_configuration_on_any_resources(run_dir: str) -> None:
    claim(run_dir, config("a.txt"), resume=False)
    other = config("a.txt", resources={"num_workers": 2}, training={"global_batch_size": 4, "zero_stage": 3})
    assert recorded_config(claim(run_dir, other, resume=True)).resources.num_workers == 2


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"seed": 1}, "seed"),
        ({"plan": {"grow": {"blocks": 3}, "train": {"steps": 3}}}, "plan.grow.blocks"),
        ({"model": {"hidden_size": 64, "num_attention_heads": 2, "context_length": 32}}, "model.hidden_size"),
        ({"plan": {"grow": {"blocks": 2}, "train": {"steps": 3}, "mode": "monolithic"}}, "plan.mode"),
        ({"training": {"global_batch_size": 4, "evaluation": {"num_windows": 7}}}, "training.evaluation.num_windows"),
        ({"tokenizer": {"vocab_size": 300}}, "tokenizer.vocab_size"),
    ],
)
def test_another_run_may_not_go_on_in_it(run_dir: str, changes: dict[str, Any], keys: str) -> None:
    claim(run_dir, config("a.txt"), resume=False)
    with pytest.raises(ConfigError, match=f"holds another run: {keys} differ"):
        claim(run_dir, config("a.txt", **changes), resume=True)
    assert recorded_config(claim(run_dir, config("a.txt"), resume=True)).seed == 0  # what was there is kept


def test_unfinished_stages_may_train_with_other_values_which_are_recorded(run_dir: str) -> None:
    storage = claim(run_dir, config("a.txt"), resume=False)
    write_manifest(storage, make_manifest(1, None))
    plan = {"grow": {"blocks": 2}, "train": {"steps": 3, "learning_rate": 3e-4}}
    training = {"global_batch_size": 4, "gradient_clipping": 0.5}
    claim(run_dir, config("a.txt", plan=plan, training=training), resume=True)
    found = {change.key: (change.after, change.from_stage) for change in read_changes(storage)}
    assert found == {"plan.train.learning_rate": (3e-4, 2), "training.gradient_clipping": (0.5, 2)}
    assert recorded_config(storage).plan.train["learning_rate"] == 3e-4, "the next --resume alone goes on with them"
    claim(run_dir, resumed_config(run_dir, []), resume=True)
    assert len(read_changes(storage)) == 2, "nothing changed this time"
    claim(run_dir, resumed_config(run_dir, ["plan.train.learning_rate=1e-4"]), resume=True)
    (*_, last) = read_changes(storage)
    assert (last.before, last.after) == (3e-4, 1e-4)
    assert last.sentence() == "plan.train.learning_rate changed from 0.0003 to 0.0001 from stage 2 on"


def test_a_damaged_record_of_changes_is_a_sentence(run_dir: str) -> None:
    storage = claim(run_dir, config("a.txt"), resume=False)
    storage.write_text("changes.jsonl", '{"key": 3')
    with pytest.raises(StoreError, match=r"changes\.jsonl is damaged"):
        read_changes(storage)


def test_a_search_may_not_mix_trials_of_other_values(run_dir: str) -> None:
    searched = build_config(
        SweepConfig, tree("a.txt", kind="sweep", sweep={"space": {"learning_rate": {"low": 1e-4, "high": 1e-2}}})
    )
    claim(run_dir, searched, resume=False)
    other = searched.model_copy(
        update={"plan": config("a.txt", plan={"grow": {"blocks": 2}, "train": {"steps": 4}}).plan}
    )
    with pytest.raises(ConfigError, match=r"holds another run: plan\.train\.steps differ"):
        claim(run_dir, other, resume=True)


def test_resuming_a_run_that_does_not_exist_begins_it_where_the_configuration_is_complete(run_dir: str) -> None:
    with pytest.raises(ConfigError, match=r"holds no run\. Check it, or add --preset to start one there"):
        resolve_run_arguments(arguments("--resume", "--run-dir", run_dir), RunConfig, load_run_config)
    found, place = resolve_run_arguments(
        arguments("--resume", "--preset", "demo", "--run-dir", run_dir), RunConfig, load_run_config
    )
    claim(place, found, resume=True)
    again, place = resolve_run_arguments(arguments("--resume", "--run-dir", run_dir), RunConfig, load_run_config)
    assert again.identity_fields() == found.identity_fields() and place == run_dir


def test_resuming_needs_to_know_which_run() -> None:
    with pytest.raises(ConfigError, match=r"--resume does not say which run\. Add its --run-dir"):
        resolve_run_arguments(arguments("--resume"), RunConfig, load_run_config)


def test_the_recorded_configuration_is_resumed_with_overrides(run_dir: str) -> None:
    claim(run_dir, config("a.txt"), resume=False)
    resumed = resumed_config(run_dir, ["resources.num_workers=4"])
    assert resumed.resources.num_workers == 4 and resumed.identity_fields() == config("a.txt").identity_fields()


def test_a_damaged_record_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"run\.yaml is not valid YAML"):
        resumed_config(str(tmp_path), [])


def test_a_directory_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        claim(str(tmp_path / "file/run"), config("a.txt"), resume=False)


@pytest.mark.parametrize("state", ["failed", "stopped", "finished", "running"])
@pytest.mark.parametrize("left", ["nothing", "manifest", "metrics"])
def test_only_a_run_that_failed_before_it_had_anything_may_start_anew(state: str, left: str, run_dir: str) -> None:
    storage = claim(run_dir, config("a.txt"), resume=False)
    write_status(storage, state, 2)
    if left == "manifest":
        write_manifest(storage, make_manifest(1, None))
    if left == "metrics":
        storage.write_text("metrics.jsonl", "{}\n")
    if (state, left) == ("failed", "nothing"):
        assert recorded_config(claim(run_dir, config("b.txt", seed=7), resume=False)).seed == 7
        return
    for resume, problem in ((False, "already holds a run"), (True, "holds another run")):
        with pytest.raises(ConfigError, match=problem):
            claim(run_dir, config("b.txt", seed=7), resume=resume)


def test_a_run_is_locked_and_fenced_from_its_claim_on(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    storage = claim(run_dir, config("a.txt"), resume=False)
    assert is_locked(Storage(run_dir))
    assert len(storage.fences) == 1 and storage.fences[0].is_current
    take_over(run_dir)
    with pytest.raises(FencedError):
        storage.write_text("status.json", "{}")


def test_a_relative_directory_is_the_same_one_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert claim("runs/mine", config("a.txt"), resume=False).root == str(tmp_path / "runs/mine")
    assert default_run_dir("demo").startswith("runs/demo-2")


def test_the_status_is_what_the_list_of_runs_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "job-1"}}))
    storage = claim(str(tmp_path / "run"), config("a.txt"), resume=False)
    write_status(storage, "failed", 4)
    (run,) = list_runs(str(tmp_path))
    assert (run.state, run.num_stages, run.num_finished_stages, run.job_id) == ("failed", 4, 0, "job-1")
    assert json.loads(storage.read_text("status.json"))["state"] == "failed"


@pytest.mark.parametrize(
    ("how", "state"),
    [
        (None, "finished"),
        (TrainingError("the loss is not finite"), "failed"),
        (MemoryError(), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),  # Ray's answer to SIGTERM
    ],
)
def test_the_list_of_runs_says_how_a_command_ended(how: BaseException | None, state: str, run_dir: str) -> None:
    storage = claim(run_dir, config("a.txt"), resume=False)
    with contextlib.suppress(Exception, KeyboardInterrupt, SystemExit), recording_status(storage) as status:
        status.begin(3)
        assert list_runs(run_dir)[0].state == "running"
        if how is not None:
            raise how
    (run,) = list_runs(run_dir)
    assert (run.state, run.num_stages) == (state, 3)


def test_a_stop_is_in_the_list_of_runs_before_the_run_has_ended(run_dir: str) -> None:
    storage = claim(run_dir, config("a.txt"), resume=False)
    with pytest.raises(TrainingError), recording_status(storage) as status:
        status.stop()
        assert list_runs(run_dir)[0].state == "interrupted"
        raise TrainingError("workers were lost while they saved")
    assert list_runs(run_dir)[0].state == "interrupted"


def test_the_test_configuration_is_a_plain_tree() -> None:
    assert json.loads(json.dumps(tree("a.txt"))) == tree("a.txt")


SECRET = "s3cr3t-Value"


def test_credentials_of_trackers_are_in_no_file_and_a_resumed_run_is_told_them_again(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://user:{SECRET}@host:5000"
    override = f"tracking.mlflow.tracking_uri={address}"
    monkeypatch.setattr("sys.argv", ["growtx", "grow", "--run-dir", run_dir, override])
    written = io.StringIO()
    tracked = config("a.txt", tracking={"mlflow": {"tracking_uri": address}})
    storage = begin_run(run_dir, tracked, resume=False, console=Console(file=written))
    for text in (storage.read_text("run.yaml"), written.getvalue()):
        assert SECRET not in text and "http://user:***@host:5000" in text
    with pytest.raises(
        ConfigError, match=r"tracking\.mlflow\.tracking_uri: \*\*\* .* Give it again .*MLFLOW_TRACKING_PASS"
    ):
        resumed_config(run_dir, [])
    resumed = resumed_config(run_dir, [override])
    assert resumed.tracking.mlflow is not None and resumed.tracking.mlflow.tracking_uri == address
    again = claim(run_dir, resumed, resume=True)
    assert SECRET not in again.read_text("run.yaml")
    assert claim(run_dir, resumed_config(run_dir, ["tracking.mlflow=null"]), resume=True)


@pytest.mark.parametrize(
    "address", [f"https://user:{SECRET}@host/a.txt", f"https://host/a.txt?X-Amz-Signature={SECRET}"]
)
def test_credentials_in_what_is_read_again_are_refused_before_anything_is_done(run_dir: str, address: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.files.*: there is a credential .*environment") as caught:
        claim(run_dir, config(address), resume=False)
    assert SECRET not in str(caught.value)
    assert claim(run_dir, config("a.txt"), resume=False).exists("run.yaml")


def test_sigterm_before_anything_has_begun_is_a_stop(tmp_path: Path) -> None:
    storage, before = Storage(tmp_path), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, recording_status(storage):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert caught.value.code == signal.SIGTERM and read_status(storage).state == "stopped"
    assert signal.getsignal(signal.SIGTERM) is before
