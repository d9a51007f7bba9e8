"""What becomes of a worker group that Ray gives up on: started again, waited for, or ended with one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from growtx.exceptions import ResourceError, TrainingError
from growtx.train import stage_trainer
from growtx.train.stage_trainer import fit_worker_group
from growtx.train.worker import GroupOutcome
from tests.train.test_job import job

NO_ROOM = ray.train.ControllerError(WorkerGroupStartupTimeoutError(2))
DIED = ray.train.WorkerGroupError("all died", {1: ValueError("Traceback:\n  ...\nno space left\n")})
CRASH = ray.train.ControllerError(RuntimeError("Traceback:\n  File ...\nthe controller lost its node"))
LACKS = ResourceError("2 workers of 1 CPUs need 2 CPUs, but the Ray cluster has 1", "Add nodes")


class Fits:
    """Stands for the trainer: each `fit` ends with what comes next, the last one with success."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.num_started = 0

    def __call__(self, *_: Any) -> Fits:
        self.num_started += 1
        return self

    def fit(self) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return SimpleNamespace(return_value={"stopped": False, "failed": {}})


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[ResourceError | None]:
    """What the cluster lacks at each look at it; nothing when the list is used up."""
    found: list[ResourceError | None] = []

    def check_cluster(_: object) -> None:
        if found and (problem := found.pop(0)) is not None:
            raise problem

    monkeypatch.setattr(stage_trainer, "check_cluster", check_cluster)
    return found


def fit(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> tuple[GroupOutcome, int]:
    """The outcome, and how many worker groups were started."""
    fits = Fits(*errors)
    monkeypatch.setattr(stage_trainer, "_torch_trainer", fits)
    return fit_worker_group([job(resources={"num_workers": 2, "max_failures": 1})]), fits.num_started


def test_workers_that_find_no_room_on_a_busy_cluster_are_waited_for_as_long_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, checks: list[ResourceError | None]
) -> None:
    assert fit(monkeypatch, *[NO_ROOM] * 5) == (GroupOutcome(stopped=False), 6)


def test_a_node_that_went_for_good_ends_the_run_with_what_the_cluster_lacks(
    monkeypatch: pytest.MonkeyPatch, checks: list[ResourceError | None]
) -> None:
    checks += [None, LACKS]
    with pytest.raises(ResourceError, match="need 2 CPUs, but the Ray cluster has 1"):
        fit(monkeypatch, *[NO_ROOM] * 5)


def test_a_controller_that_keeps_failing_is_given_up_after_max_failures(
    monkeypatch: pytest.MonkeyPatch, checks: list[ResourceError | None]
) -> None:
    assert fit(monkeypatch, CRASH, NO_ROOM)[1] == 3
    with pytest.raises(TrainingError, match=r"directs the workers: RuntimeError: the controller lost its node\. Fin"):
        fit(monkeypatch, CRASH, NO_ROOM, CRASH)


def test_workers_that_keep_dying_end_the_run_with_the_last_line_of_their_error(
    monkeypatch: pytest.MonkeyPatch, checks: list[ResourceError | None]
) -> None:
    with pytest.raises(TrainingError, match=r"^training failed on 1 of the workers: ValueError: no space left\."):
        fit(monkeypatch, DIED, DIED)


def test_only_losses_in_a_row_count_between_which_nothing_was_saved(
    monkeypatch: pytest.MonkeyPatch, checks: list[ResourceError | None], caplog: pytest.LogCaptureFixture
) -> None:
    assert fit(monkeypatch, DIED, NO_ROOM)[1] == 3, "one is outlived"
    progress = iter(["nothing", "step 5", "step 10", "stage 1", "stage 1, step 5", "stage 1, step 5"])
    monkeypatch.setattr(stage_trainer, "_saved", lambda jobs: next(progress))
    assert fit(monkeypatch, DIED, DIED, CRASH, DIED) == (GroupOutcome(stopped=False), 5)
    assert "no space left; starting again (time 1 of 1 without progress)" in caplog.text
    progress = iter(["nothing", "step 5", "step 5"])
    with pytest.raises(TrainingError):
        fit(monkeypatch, DIED, DIED)


def test_what_was_saved_is_a_manifest_or_a_checkpoint(tmp_path: Path) -> None:
    the_job = job(run_dir=str(tmp_path))
    seen = [stage_trainer._saved([the_job])]
    the_job.run_storage.write_text("checkpoints/stage-01/step-00000005/checkpoint.json", "{}")
    seen.append(stage_trainer._saved([the_job]))
    the_job.run_storage.write_text("checkpoints/ray/attempt-1/state", "{}")
    assert stage_trainer._saved([the_job]) == seen[1] != seen[0]
    the_job.run_storage.write_text("manifests/01-depth-1-0123456789ab.json", "{}")
    assert stage_trainer._saved([the_job]) != seen[1]
