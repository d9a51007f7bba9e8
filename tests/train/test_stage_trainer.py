"""What becomes of a worker group that Ray gives up on: started again, waited for, or ended with one sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from growtx.exceptions import ResourceError, TrainingError
from growtx.train import stage_trainer
from growtx.train.stage_trainer import GroupOutcome, fit_worker_group
from tests.train.test_job import job

NO_ROOM = ray.train.ControllerError(WorkerGroupStartupTimeoutError(2))
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
    error = ray.train.WorkerGroupError("all died", {1: ValueError("Traceback:\n  ...\nno space left\n")})
    with pytest.raises(TrainingError, match=r"^training failed on 1 of the workers: ValueError: no space left\."):
        fit(monkeypatch, error)
