"""The pool of runs: what fits runs at the same time, a failure is retried alone, a stop starts nothing more."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.exceptions import ConfigError, TrainingError
from growtx.run import pool as pool_module
from growtx.run.pool import Pool, TaskResult, TrainTask


class FakeTask(TrainTask):
    """A task without jobs, of a given size."""

    def __init__(self, name: str, cpus: float = 1.0, gpus: float = 0.0) -> None:
        super().__init__(name, ())
        object.__setattr__(self, "size", (cpus, gpus))

    @property
    def needs(self) -> tuple[float, float]:
        return self.size  # type: ignore[attr-defined, no-any-return]


class Cluster:
    """Ends one running task at each look, oldest first, with the outcome that it was given."""

    def __init__(self, outcomes: dict[str, list[TaskResult]]) -> None:
        self.outcomes = {name: iter(given) for name, given in outcomes.items()}
        self.started: list[str] = []
        self.most_at_once = 0
        self.told: list[tuple[str, str]] = []
        self.said: list[str] = []

    def start(self, task: TrainTask) -> str:
        self.started.append(task.name)
        return f"{task.name}#{len(self.started)}"

    def wait(self, references: list[str], **_: Any) -> tuple[list[str], list[str]]:
        self.most_at_once = max(self.most_at_once, len(references))
        return references[:1], references[1:]

    def outcome(self, reference: str) -> TaskResult:
        return next(self.outcomes.get(reference.partition("#")[0], iter(())), False)


def run(cluster: Cluster, *tasks: TrainTask, cpus: float = 2.0, retries: int = 1) -> Any:
    pool = Pool(tasks, start=cluster.start, retries=retries)
    pool.tell = lambda task, words: cluster.told.append((task.name, words))
    pool.say = cluster.said.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module.ray, "wait", cluster.wait)
        patch.setattr(pool_module, "_outcome", cluster.outcome)
        return pool.run((cpus, 1.0))


def test_all_that_fit_run_at_the_same_time() -> None:
    cluster = Cluster({})
    assert run(cluster, FakeTask("a", 0.6), FakeTask("b", 0.6), FakeTask("c", 0.6)).failed == {}
    assert cluster.most_at_once == 3 and cluster.started == ["a", "b", "c"]
    assert cluster.told[-1] == ("c", "finished")


def test_what_does_not_fit_waits_and_smaller_ones_pass() -> None:
    cluster = Cluster({})
    run(cluster, FakeTask("a", 1), FakeTask("big", 2), FakeTask("c", 1), FakeTask("gpu", 1, 2))
    assert cluster.started == ["a", "c", "big", "gpu"] and cluster.most_at_once == 2


def test_a_failed_one_starts_again_and_others_are_not_disturbed() -> None:
    cluster = Cluster({"b": [TrainingError("workers were lost"), False]})
    assert run(cluster, FakeTask("a"), FakeTask("b")).failed == {}
    assert sorted(cluster.started) == ["a", "b", "b"]
    assert cluster.said == ["b failed and is restarted, 1 times at most: workers were lost."]


def test_one_that_keeps_failing_is_given_up_after_its_retries() -> None:
    error = TrainingError("the loss is not finite")
    cluster = Cluster({"b": [error] * 9})
    assert run(cluster, FakeTask("a"), FakeTask("b"), retries=2).failed == {"b": error}
    assert cluster.started.count("b") == 3 and cluster.started.count("a") == 1
    assert cluster.told[-1] == ("b", "failed")


def test_a_configuration_that_cannot_be_is_not_tried_twice() -> None:
    cluster = Cluster({"a": [ConfigError("no such font")]})
    assert set(run(cluster, FakeTask("a"), retries=5).failed) == {"a"} and cluster.started == ["a"]


def test_after_a_stop_nothing_more_starts() -> None:
    cluster = Cluster({"a": [True]})
    result = run(cluster, FakeTask("a", 2), FakeTask("b", 2))
    assert result.stopped and cluster.started == ["a"] and not result.failed
