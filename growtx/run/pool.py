"""Several worker groups on one cluster at the same time: each starts when its workers fit, and fails independently.

A group is driven by a task of its own that holds no CPU (its workers do), so groups never wait for each other's CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from rich.console import Console

from growtx.exceptions import ConfigError, GrowtxError, TrainingError
from growtx.run.grow import run_jobs, stop_on_signals, unfinished_stages
from growtx.train.claims import RunClaims
from growtx.train.cluster import first_sentence
from growtx.train.job import TrainJob
from growtx.train.progress import StageProgress, show_progress, start_progress_actor

_POLL_SECONDS = 1.0

TaskResult = bool | GrowtxError  # whether a stop was asked for, or why it failed


@dataclass(frozen=True)
class TrainTask:
    """Jobs of one run, or of many, one after the other.

    Attributes:
        claims: decides who takes which run, if several tasks are given the same jobs.
    """

    name: str
    jobs: tuple[TrainJob, ...]
    claims: RunClaims | None = None

    @property
    def is_finished(self) -> bool:
        return not any(unfinished_stages(job) for job in self.jobs)

    @property
    def needs(self) -> tuple[float, float]:
        """CPUs and GPUs that its largest worker group takes."""
        groups = [job.resources_of(stage) for job in self.jobs for stage in job.stages]
        return max(group.num_cpus for group in groups), max(group.num_gpus for group in groups)


@dataclass
class PoolResult:
    """How a set of runs ended."""

    stopped: bool = False
    failed: dict[str, GrowtxError] = field(default_factory=dict)


def train_concurrently(
    tasks: Sequence[TrainTask], *, retries: int, on_stop: Callable[[], None], console: Console
) -> PoolResult:
    """Train all unfinished runs; Ray must be connected.

    Args:
        retries: how often a failed run is restarted, from its last manifest or checkpoint.
        on_stop: called when a stop is asked for.
    """
    todo = [task for task in tasks if not task.is_finished]
    for task in tasks:
        if task not in todo:
            console.print(f"{task.name}: already finished", highlight=False)
    if not todo:
        return PoolResult()
    progress_actors: dict[str, Any] = {task.name: start_progress_actor() for task in todo}
    pool = Pool(
        todo, start=lambda task: _run_task.remote(task.jobs, progress_actors[task.name], task.claims), retries=retries
    )
    pool.tell = lambda task, words: _report_state(progress_actors[task.name], task, words)
    pool.say = lambda words: console.print(words, highlight=False, markup=False, soft_wrap=True)

    def request_stop() -> None:
        on_stop()
        pool.stop()
        for progress_actor in progress_actors.values():
            progress_actor.request_stop.remote()

    def has_begun() -> bool:
        return any(ray.get([actor.has_begun.remote() for actor in progress_actors.values()], timeout=5))

    with show_progress(progress_actors, console), stop_on_signals(request_stop, console, has_begun):
        return pool.run(cluster_capacity())
    return PoolResult(stopped=True)  # they were told to stop before any of them had begun


class Pool:
    """Starts tasks in order as their needs fit, and starts a failed one again while it has attempts left.

    Args:
        start: begins a task and returns what `ray.get` turns into its outcome.
    """

    def __init__(self, tasks: Sequence[TrainTask], *, start: Callable[[TrainTask], Any], retries: int) -> None:
        self._waiting = list(tasks)
        self._start, self._retries = start, retries
        self._running: dict[Any, TrainTask] = {}
        self._attempts = dict.fromkeys((task.name for task in tasks), 0)
        self._result = PoolResult()
        self.tell: Callable[[TrainTask, str], None] = lambda task, words: None
        self.say: Callable[[str], None] = lambda words: None

    def stop(self) -> None:
        """Start nothing more; running tasks have been asked to save and stop."""
        self._result.stopped = True

    def run(self, total: tuple[float, float]) -> PoolResult:
        """Run all tasks to their ends on `total` CPUs and GPUs."""
        for task in self._waiting:
            self.tell(task, "waiting")
        while self._running or (self._waiting and not self._result.stopped):
            self._start_what_fits(total)
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_SECONDS)
            for reference in done:
                self._end(self._running.pop(reference), _outcome(reference))
        return self._result

    def _start_what_fits(self, total: tuple[float, float]) -> None:
        for task in list(self._waiting):
            used = [
                sum(needs) for needs in zip((0, 0), *(other.needs for other in self._running.values()), strict=True)
            ]
            fits = all(u + n <= t + 1e-6 for u, n, t in zip(used, task.needs, total, strict=True))
            # Alone it always starts: the cluster was checked, and may have grown since.
            if not self._result.stopped and (fits or not self._running):
                self._waiting.remove(task)
                self._attempts[task.name] += 1
                self.tell(task, "starting workers")
                self._running[self._start(task)] = task

    def _end(self, task: TrainTask, outcome: TaskResult) -> None:
        if isinstance(outcome, GrowtxError):
            left = self._retries + 1 - self._attempts[task.name]
            if left and not isinstance(outcome, ConfigError) and not self._result.stopped:
                self.say(f"{task.name} failed and is restarted, {left} times at most: {outcome}")
                self.tell(task, "failed, restarting")
                self._waiting.append(task)
                return
            self.say(f"{task.name} failed: {outcome}")
            self.tell(task, "failed")
            self._result.failed[task.name] = outcome
        elif outcome:
            self._result.stopped = True
            self.tell(task, "stopped")
        else:
            self.tell(task, "finished")


@ray.remote(num_cpus=0, max_retries=0)
def _run_task(jobs: Sequence[TrainJob], progress_actor: Any, claims: RunClaims | None) -> TaskResult:
    """The outcome of a task. A user-facing error comes back as a value, without Ray's layers."""
    try:
        return run_jobs(jobs, progress_actor, claims)
    except GrowtxError as error:
        return error


def _outcome(reference: Any) -> TaskResult:
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayError as error:  # the process of the task died, or a bug of our own
        return TrainingError(f"its task ended: {type(error).__name__}: {first_sentence(error)}", "See Ray's logs")


def _report_state(progress_actor: Any, task: TrainTask, words: str) -> None:
    """What the display shows of a run whose workers do not report."""
    if words == "finished":
        last = task.jobs[-1]
        progress_actor.report.remote(
            StageProgress(last.num_stages, words, last.num_stages, 1.0, weights=(0.0,) * (last.num_stages - 1) + (1.0,))
        )
    else:
        progress_actor.report.remote(StageProgress(name=words))


def cluster_capacity() -> tuple[float, float]:
    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)
