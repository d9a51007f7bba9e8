"""The progress display, without a cluster: one line for each run, and warnings that say whose they are."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from growtx.train import progress
from growtx.train.progress import ProgressReporter, RunPosition, StageProgress, eta_seconds, show_progress

HALF = StageProgress(
    stage=2, name="depth-2", num_stages=2, fraction=0.5, loss=1.25, tokens_per_second=2000, weights=(1, 3)
)


class FakeBoard:
    """A progress_actor in this process: `ray.get` of what it returns is that."""

    def __init__(self, at: StageProgress, *warnings: str) -> None:
        self.at, self.warnings = at, list(warnings)
        self.read = self

    def remote(self) -> tuple[StageProgress, list[str]]:
        warnings, self.warnings = self.warnings, []
        return self.at, warnings


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.01)
    yield


def shown(progress_actors: dict[str, Any], *, until: str, **options: Any) -> list[str]:
    """What is drawn, once `until` is among it."""
    console = Console(file=(file := io.StringIO()), width=200, **options)
    with show_progress(progress_actors, console):
        deadline = time.monotonic() + 60
        while until not in file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    return file.getvalue().splitlines()


def test_the_fraction_of_a_run_weighs_its_stages_by_their_work() -> None:
    assert HALF.total_fraction == pytest.approx(2.5 / 4)
    assert StageProgress().total_fraction == 0


def test_a_stage_is_described_by_what_is_known() -> None:
    assert HALF.describe() == "stage 2/2 depth-2, loss 1.250, 2,000 tokens/s"
    assert StageProgress(name="waiting").describe() == "waiting"


def test_the_time_left_follows_from_the_speed_so_far() -> None:
    assert eta_seconds(0.25, 10) == 30 and eta_seconds(0.001, 10) is None


def test_every_board_has_a_line_of_its_own() -> None:
    lines = shown({"en": FakeBoard(HALF), "control": FakeBoard(StageProgress(name="waiting"))}, until="waiting")
    assert lines[0].startswith("en       62%  stage 2/2 depth-2, loss 1.250") and "min left" in lines[0]
    assert lines[1] == "control   0%  waiting"


def test_warnings_name_the_run_where_there_are_several() -> None:
    assert "warning: slow disk" in shown({"growing": FakeBoard(HALF, "slow disk")}, until="62%")
    both = {"en": FakeBoard(HALF), "ru": FakeBoard(HALF, "slow disk")}
    assert "warning: ru: slow disk" in shown(both, until="slow disk")


def test_a_terminal_gets_a_bar_for_each_board() -> None:
    progress_actors = {"en": FakeBoard(HALF), "ru": FakeBoard(HALF)}
    drawn = "\n".join(shown(progress_actors, until="62%", force_terminal=True))
    assert "en" in drawn and "ru" in drawn and "62%" in drawn


def test_a_group_of_runs_counts_those_that_are_behind_it() -> None:
    second = dataclasses.replace(HALF, run_position=RunPosition("seed-1", num_before=1, num_runs=4))
    assert second.total_fraction == pytest.approx((1 + 2.5 / 4) / 4)
    assert second.describe().startswith("run 2/4 seed-1, stage 2/2 depth-2, ")


class Answers:
    """A progress actor as a worker sees it: each report is answered by the next of these, or ends in an error."""

    def __init__(self, *answers: Any) -> None:
        self.answers = iter(answers)
        self.report = self.is_stopping = self

    def remote(self, *_: StageProgress) -> Any:
        return next(self.answers)


UNAVAILABLE = ray.exceptions.ActorUnavailableError("it is being started again", None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Answers are there at once, and the time is what the test says."""

    def get(value: Any, timeout: float | None) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def sleep(seconds: float) -> None:
        now[0] += seconds

    now = [0.0]
    monkeypatch.setattr(progress.time, "sleep", sleep)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    yield now


def reported(clock: list[float], *answers: Any, seconds: float = 1.0) -> ProgressReporter:
    """A reporter that has collected all these answers, one every few seconds."""
    reporter = ProgressReporter(Answers(*answers, False))
    for _ in range(len(answers) + 1):
        reporter.report(HALF)
        clock[0] += seconds
    return reporter


def test_a_stop_that_was_asked_for_is_not_forgotten(clock: list[float]) -> None:
    assert not reported(clock, False, False).stop_requested
    assert reported(clock, False, True, False, UNAVAILABLE).stop_requested


def test_a_worker_goes_on_asking_while_the_actor_is_started_again(clock: list[float]) -> None:
    reporter = reported(clock, False, UNAVAILABLE, UNAVAILABLE, True)
    assert reporter.stop_requested and not reporter.is_lost
    far_apart = reported(clock, UNAVAILABLE, False, UNAVAILABLE, seconds=15)
    assert not far_apart.is_lost, "it answered in between"


def test_a_worker_that_nobody_answers_for_long_is_lost(clock: list[float]) -> None:
    reporter = reported(clock, UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, seconds=15)
    assert reporter.is_lost and not reporter.stop_requested
    reporter.report(HALF)  # and asks no more


def test_an_evaluation_waits_for_its_answer(clock: list[float]) -> None:
    reporter = ProgressReporter(Answers(True))
    reporter.report(dataclasses.replace(HALF, evaluated=True))
    assert reporter.stop_requested


def test_an_evaluation_is_told_again_to_an_actor_that_is_started_anew(clock: list[float]) -> None:
    evaluated = dataclasses.replace(HALF, evaluated=True)
    told = Answers(UNAVAILABLE, UNAVAILABLE, True, False)
    reporter = ProgressReporter(told)
    reporter.report(evaluated)
    assert reporter.stop_requested and next(told.answers) is False, "three times, until it was heard"
    alone = ProgressReporter(Answers(*[UNAVAILABLE] * 1000))
    alone.report(evaluated)
    assert alone.is_lost, "and not for ever"


def test_an_answer_is_insisted_on_until_nobody_can_be_there(clock: list[float]) -> None:
    answers = iter([UNAVAILABLE, UNAVAILABLE, "claimed"])
    assert progress.insist(lambda: next(answers)) == "claimed"
    with pytest.raises(ray.exceptions.RayActorError):
        progress.insist(lambda: UNAVAILABLE)
    assert clock[0] >= progress.LOST_AFTER_SECONDS


def test_who_has_no_progress_to_report_asks_and_hears_at_the_next_question(clock: list[float]) -> None:
    reporter = ProgressReporter(Answers(False, UNAVAILABLE, True, False, False))
    heard = []
    for _ in range(5):
        heard.append(reporter.ask())
        clock[0] += 1.0
    assert heard == [False, False, False, True, True]
    assert not ProgressReporter(None).ask(), "without an actor there is nobody to ask"


def test_the_actor_lives_beside_the_driver_and_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    here = "ab" * 28
    monkeypatch.setattr(progress, "is_connected", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: here))

    def remote(**options: Any) -> Any:
        asked.update(options)
        return lambda actor_class: SimpleNamespace(remote=actor_class)

    monkeypatch.setattr(ray, "remote", remote)
    assert isinstance(progress.start_progress_actor(), progress.ProgressActor)
    assert asked["max_restarts"] == -1 and asked["num_cpus"] == 0
    assert (asked["scheduling_strategy"].node_id, asked["scheduling_strategy"].soft) == (here, False)


def test_without_ray_the_actor_is_an_object_of_this_process() -> None:
    actor = progress.start_progress_actor()
    reporter = ProgressReporter(actor)
    reporter.report(HALF)
    assert progress.answer_of(actor.read.remote()) == (HALF, []) and not reporter.stop_requested
    actor.request_stop.remote()
    reporter.report(HALF)
    reporter.report(HALF)  # whose turn it is to collect the answer
    assert reporter.stop_requested
