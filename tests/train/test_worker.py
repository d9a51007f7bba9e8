"""Jobs that share a worker group: in order, each run on its own, and divided among groups that are given the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from growtx.exceptions import GrowtxError, TrainingError
from growtx.storage import Storage
from growtx.train import worker
from growtx.train.claims import ClaimRegistry, RunClaims, forget_claims
from growtx.train.job import TrainJob
from growtx.train.progress import RunPosition
from tests.store.manifests import write_lineage
from tests.train.test_job import job

DIVERGED = TrainingError("the loss is not finite")


class Registry:
    """The claims of one process: `ray.get` of what it returns is that."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}
        self.claim = self

    def remote(self, run_dir: str, group: str) -> bool:
        return self.owners.setdefault(run_dir, group) == group


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "on_rank_zero", lambda action: action())
    monkeypatch.setattr("ray.get", lambda value, timeout: value)


def trained(
    monkeypatch: pytest.MonkeyPatch,
    outcomes: dict[str, bool | GrowtxError],
    *run_dirs: str,
    claims: RunClaims | None = None,
) -> tuple[list[tuple[str, RunPosition]], dict[str, Any]]:
    """The runs that were trained, and the outcome of the group."""
    seen: list[tuple[str, RunPosition]] = []

    def train(the_job: TrainJob, _board: Any, run_position: RunPosition) -> bool:
        seen.append((the_job.run_dir, run_position))
        outcome = outcomes.get(the_job.run_dir, False)
        if isinstance(outcome, GrowtxError):
            raise outcome
        return outcome

    monkeypatch.setattr(worker, "train_job", train)
    jobs = [job(run_dir=run_dir).model_dump(mode="json") for run_dir in run_dirs]
    return seen, worker.train_loop_per_worker({"jobs": jobs, "progress_actor": None, "claims": claims})


def test_jobs_are_trained_in_order_and_know_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, outcome = trained(monkeypatch, {}, "/r/a", "/r/a", "/r/b")
    assert seen == [
        ("/r/a", RunPosition("a", 0, 2)),
        ("/r/a", RunPosition("a", 0, 2)),
        ("/r/b", RunPosition("b", 1, 2)),
    ]
    assert outcome == {"stopped": False, "failed": {}}


def test_a_failed_run_is_left_alone_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, outcome = trained(monkeypatch, {"/r/a": DIVERGED}, "/r/a", "/r/a", "/r/b")
    assert [run_dir for run_dir, _ in seen] == ["/r/a", "/r/b"]
    assert outcome == {"stopped": False, "failed": {"/r/a": DIVERGED}}


def test_after_a_stop_nothing_more_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, outcome = trained(monkeypatch, {"/r/a": True}, "/r/a", "/r/b")
    assert [run_dir for run_dir, _ in seen] == ["/r/a"] and outcome["stopped"]


def test_groups_divide_runs_and_one_that_lost_its_workers_finds_its_own_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    registry.owners = {"/r/a": "other", "/r/b": "mine"}
    seen, _ = trained(monkeypatch, {}, "/r/a", "/r/b", "/r/c", claims=RunClaims(registry, "mine"))
    assert [run_dir for run_dir, _ in seen] == ["/r/b", "/r/c"] and registry.owners["/r/c"] == "mine"


def test_a_run_belongs_to_the_group_that_claims_it_first(tmp_path: Path) -> None:
    registry = ClaimRegistry(Storage(tmp_path))
    asked = [("/r/a", "one"), ("/r/a", "two"), ("/r/b", "two"), ("/r/a", "one"), ("/r/b", "one")]
    assert [registry.claim(run_dir, group) for run_dir, group in asked] == [True, False, True, True, False]


def test_a_registry_that_is_started_anew_knows_whose_a_run_is(tmp_path: Path) -> None:
    place = Storage(tmp_path)
    ClaimRegistry(place).claim("/r/a", "one")
    anew = ClaimRegistry(place)
    assert [anew.claim("/r/a", "two"), anew.claim("/r/a", "one"), anew.claim("/r/b", "two")] == [False, True, True]
    forget_claims(place)
    assert place.list_names() == [] and ClaimRegistry(place).claim("/r/a", "two")


def test_a_claim_is_made_again_while_the_registry_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    deaths = iter([ray.exceptions.ActorUnavailableError("it is being started again", None)] * 2)

    def get(value: Any, timeout: float | None) -> Any:
        for death in deaths:
            raise death
        return value

    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("growtx.train.progress.time.sleep", lambda seconds: None)
    assert RunClaims(registry, "mine").claim("/r/a") and registry.owners == {"/r/a": "mine"}


def test_a_stage_stands_on_the_one_before_it_in_the_chain(tmp_path: Path) -> None:
    """Also where the newest manifest is another one: of a stage that is done, of a repetition of it."""
    manifests = write_lineage(str(tmp_path))
    the_job = job(run_dir=str(tmp_path / "mine"), shared_dir=str(tmp_path))
    for index in range(1, len(manifests) + 2):
        finished, parent = worker._manifests_at(the_job, index)
        assert not finished and (parent.index if parent else 0) == index - 1
