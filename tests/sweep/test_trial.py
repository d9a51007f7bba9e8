"""A trial inside its process, with Ray Train and the coordinator replaced: when it begins, and what it reports."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest

from growtx.storage import Storage
from growtx.store.trials import TrialEvaluation, TrialRecord, read_trials
from growtx.sweep import trial as trial_module
from growtx.sweep.search import METRIC, RandomProposer, RecordedSearch
from growtx.sweep.trial import Trial, TrialCoordinator, TrialHandle
from growtx.sweep.tune import Recorder
from growtx.train import progress
from growtx.train.progress import StageProgress
from growtx.train.worker import GroupOutcome


class Coordinator:
    """Writes down what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.calls.append((name, *arguments)))


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    """What a stage's training was asked to do ends with `stopped`."""
    coordinator = Coordinator()
    monkeypatch.setattr(trial_module, "insist", lambda call: call())
    monkeypatch.setattr(
        trial_module,
        "fit_worker_group",
        lambda jobs, seat: coordinator.calls.append(("train", jobs)) or GroupOutcome(stopped=True),
    )
    return coordinator


def make_trial(coordinator: Coordinator, number: int = 3) -> Trial:
    """As Tune's actor has it after its constructor."""
    made = Trial.__new__(Trial)
    search = SimpleNamespace(trial_job=lambda number, values: f"job {number}")
    made.setup({"number": number, "values": {}}, search=search, coordinator=coordinator)  # type: ignore[arg-type]
    return made


def test_a_process_that_tune_takes_its_trial_away_from_never_begins_it_nor_stops_who_has_it_now(
    coordinator: Coordinator,
) -> None:
    """Tune does so when an actor comes free while the trial's own still starts."""
    make_trial(coordinator).cleanup()
    assert coordinator.calls == []


def test_a_trial_begins_with_its_first_step_and_only_once(coordinator: Coordinator) -> None:
    made = make_trial(coordinator)
    results = [made.step(), made.step()]
    assert [call for call in coordinator.calls if call[0] in ("open", "train")] == [("open", 3), ("train", ["job 3"])]
    assert all(result["ended"] == "stopped" and result["done"] for result in results)


def test_a_trial_that_was_asked_to_stop_reports_the_metric_that_tune_insists_on(coordinator: Coordinator) -> None:
    result = make_trial(coordinator).step()
    assert math.isnan(result[METRIC])
    search = RecordedSearch(RandomProposer({}, [0]), [], num_trials=1, planned=None)
    search.suggest("a")
    search.on_trial_complete("a", result)


def test_another_trial_in_the_same_process_stops_the_one_before(coordinator: Coordinator) -> None:
    made = make_trial(coordinator)
    made.step()
    made.reset_config({"number": 4, "values": {}})
    assert ("request_stop", 3) in coordinator.calls
    made.step()
    assert coordinator.calls[-1] == ("train", ["job 4"])


def test_a_trial_that_goes_on_keeps_what_it_had_reported(tmp_path: Any) -> None:
    run = Storage(tmp_path)
    before = [TrialEvaluation(fraction=fraction, bits_per_byte=3.0) for fraction in (0.25, 0.5)]
    record = TrialRecord(stage=1, stage_name="s", number=0, values={}, evaluations=before)
    stage = SimpleNamespace(index=1, name="s")
    recorder = Recorder(run, SimpleNamespace(stage=lambda values: stage), [record], Coordinator())  # type: ignore[arg-type]
    recorder._flops = lambda record, prefix_cached: (0.0, 0.0)  # type: ignore[method-assign]
    tuned = SimpleNamespace(config={"number": 0, "values": {}, "planned": False})
    recorder.on_trial_start(0, [], tuned)
    result = {METRIC: 2.5, "fraction": 0.5, "num_tokens": 8, "seconds": 1.0, "total_seconds": 2.0}
    recorder.on_trial_result(0, [], tuned, {**result, "prefix_cached": False})
    (found,) = read_trials(run, 1)
    assert [(one.fraction, one.bits_per_byte) for one in found.evaluations] == [(0.25, 3.0), (0.5, 2.5)]


def test_trials_are_asked_to_stop_one_by_one_or_all_at_once() -> None:
    async def scenario() -> list[bool]:
        coordinator = TrialCoordinator()
        for number in (1, 2):
            await coordinator.open(number)
        answers = [await coordinator.report(number, StageProgress()) for number in (1, 2)]
        await coordinator.request_stop(1)
        answers += [await coordinator.report(number, StageProgress()) for number in (1, 2)]
        waiting = asyncio.ensure_future(coordinator.report(2, StageProgress(evaluated=True)))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "an evaluation waits for what is decided"
        await coordinator.request_stop()
        answers.append(await asyncio.wait_for(waiting, 5))
        await coordinator.open(3)
        return [*answers, await coordinator.report(3, StageProgress())]

    assert asyncio.run(scenario()) == [False, False, True, False, True, True]


def test_a_trial_offers_its_workers_what_a_progress_actor_offers_them() -> None:
    """Every method of the actor that the loop of the workers calls, however many that will be."""
    source = inspect.getsource(progress.ProgressReporter) + inspect.getsource(progress.DriverLogHandler)
    called = set(re.findall(r"_progress_actor\.(\w+)\.remote", source))
    assert {"report", "is_stopping", "warn"} <= called
    coordinator = Coordinator()
    handle = TrialHandle(coordinator, 7)
    for name in called:
        getattr(handle, name).remote()
        assert coordinator.calls[-1] == (name, 7)
        assert inspect.iscoroutinefunction(getattr(TrialCoordinator, name))


def test_a_coordinator_that_is_started_anew_meets_its_trials_when_they_report() -> None:
    async def scenario() -> list[Any]:
        anew = TrialCoordinator()
        evaluated = StageProgress(evaluated=True, fraction=0.5)
        waiting = asyncio.ensure_future(anew.report(5, evaluated))
        found = await anew.next_evaluation(5)
        await asyncio.sleep(0)
        assert not waiting.done()
        asked = asyncio.ensure_future(anew.next_evaluation(5))
        goes_on = await asyncio.wait_for(waiting, 5)
        asked.cancel()
        await anew.request_stop(5)
        return [found == evaluated, goes_on, await anew.is_stopping(5), await anew.is_stopping(6)]

    assert asyncio.run(scenario()) == [True, False, True, False]
