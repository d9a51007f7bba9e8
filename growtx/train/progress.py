"""One progress display for one run or several: each rank 0 reports to a small actor, which the driver reads.

The actor also carries the one message that goes the other way: a request to save and stop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from growtx.compat.ray import is_connected, ray_errors

LOST_AFTER_SECONDS = 20.0  # of silence; starting a process again takes a few
ASK_EVERY_SECONDS = 0.2  # between two steps, where the loops are short
LINE_EVERY_SECONDS = 15.0  # where there is no terminal to draw on


@dataclass(frozen=True)
class RunPosition:
    """Where a run stands among those of its worker group."""

    run: str = ""
    num_before: int = 0
    num_runs: int = 1


@dataclass(frozen=True)
class StageProgress:
    """Where a run is. `fraction` refers to the limit of the current stage that will be reached first."""

    stage: int = 0
    name: str = "starting workers"
    num_stages: int = 1
    fraction: float = 0.0
    seconds: float = 0.0
    loss: float | None = None
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None
    weights: tuple[float, ...] = field(default_factory=tuple)  # expected share of each stage in the whole work
    run_position: RunPosition = RunPosition()
    prefix_cached: bool = False  # whether the frozen prefix's activations are read from the cache
    evaluated: bool = False  # bits_per_byte was measured just now: a scheduler may decide whether to continue

    @property
    def total_fraction(self) -> float:
        """Share of the whole work that is done: of the run, or of all runs that its worker group goes through."""
        if not self.weights or self.stage == 0:
            return 0.0
        done = sum(self.weights[: self.stage - 1]) + self.weights[self.stage - 1] * min(1.0, self.fraction)
        return (self.run_position.num_before + done / sum(self.weights)) / self.run_position.num_runs

    def describe(self) -> str:
        parts = [f"stage {self.stage}/{self.num_stages} {self.name}" if self.stage else self.name]
        if self.stage and self.run_position.num_runs > 1:
            parts.insert(
                0, f"run {self.run_position.num_before + 1}/{self.run_position.num_runs} {self.run_position.run}"
            )
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.3f} bits/byte")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        return ", ".join(parts)


class ProgressActor:
    """Holds the last progress and whether a stop was asked for."""

    def __init__(self) -> None:
        self._progress = StageProgress()
        self._stop = False
        self._warnings: list[str] = []

    def report(self, progress: StageProgress) -> bool:
        """Called by rank 0; returns whether to save and stop."""
        self._progress = progress
        return self._stop

    def read(self) -> tuple[StageProgress, list[str]]:
        """The last progress, and the warnings since the last call."""
        warnings, self._warnings = self._warnings, []
        return self._progress, warnings

    def warn(self, message: str) -> None:
        self._warnings.append(message)

    def request_stop(self) -> None:
        self._stop = True

    def is_stopping(self) -> bool:
        """What a worker asks that has no progress to report: any rank, at any time."""
        return self._stop

    def has_begun(self) -> bool:
        """Whether any worker has reported a stage."""
        return self._progress.stage > 0


def start_control_actor(actor_class: type, *arguments: Any) -> Any:
    """An actor on the node of this process, started again whenever its own process dies; without Ray, an object here.

    It has then forgotten everything: progress is reported, and a stop is asked for, again and again.
    """
    if not is_connected():
        return _Here(actor_class(*arguments))
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1}
    return ray.remote(**options)(actor_class).remote(*arguments)


@dataclass(frozen=True)
class _Here:
    """An object of this process that is asked as an actor is."""

    target: Any

    def __getattr__(self, name: str) -> _HereMethod:
        return _HereMethod(getattr(self.target, name))


@dataclass(frozen=True)
class _HereMethod:
    method: Callable[..., Any]

    def remote(self, *arguments: Any) -> _HereAnswer:
        return _HereAnswer(self.method(*arguments))


@dataclass(frozen=True)
class _HereAnswer:
    value: Any


def answer_of(reference: Any, *, timeout: float | None = None) -> Any:
    """What a control actor answered.

    Raises:
        RayError, TimeoutError: nothing.
    """
    if isinstance(reference, _HereAnswer):
        return reference.value
    import ray

    return ray.get(reference, timeout=timeout)


def is_answered(reference: Any, *, wait: bool = False) -> bool:
    """Whether there is an answer already, or in the end."""
    if isinstance(reference, _HereAnswer):
        return True
    import ray

    return bool(ray.wait([reference], timeout=None if wait else 0)[0])


def start_progress_actor() -> Any:
    """A progress actor that `start_control_actor` looks after."""
    return start_control_actor(ProgressActor)


def insist(call: Callable[[], Any]) -> Any:
    """What a control actor answers, asked again and again while it is being started anew.

    Args:
        call: asks, and returns the reference of the answer.

    Raises:
        RayActorError: nothing has answered for as long as starting anew never takes.
    """
    deadline = time.monotonic() + LOST_AFTER_SECONDS
    while True:
        try:
            return answer_of(call())
        except ray_errors("RayActorError"):
            if time.monotonic() >= deadline:
                raise
            time.sleep(ASK_EVERY_SECONDS)


class StopRequested(Exception):
    """The run was asked to save and stop."""


class ProgressReporter:
    """A worker's end of the progress_actor: rank 0 reports without waiting, except for the answer to an evaluation.

    Attributes:
        stop_requested: once asked for, never forgotten.
        is_lost: nothing has answered for so long that nobody could ask these workers to stop.
    """

    def __init__(self, progress_actor: Any) -> None:
        self._progress_actor = progress_actor
        self._pending: Any = None
        self._silent_since: float | None = None
        self._question: Any = None
        self._asked_at = -ASK_EVERY_SECONDS
        self.stop_requested = self.is_lost = False

    def report(self, progress: StageProgress) -> None:
        if self._pending is not None:
            if not is_answered(self._pending, wait=progress.evaluated):
                return
            self._collect()
        while self._progress_actor is not None:
            self._pending = self._progress_actor.report.remote(progress)
            if not progress.evaluated or self._collect():
                return
            time.sleep(ASK_EVERY_SECONDS)  # an evaluation counts: whoever was started anew must hear of it

    def ask(self) -> bool:
        """Whether to stop, as far as this rank has heard: the answer to this question comes with one of the next.

        For everything that takes long and is no training step: any rank, as often as it likes.
        """
        if self._question is not None and is_answered(self._question):
            question, self._question = self._question, None
            with suppress(*ray_errors()):  # it is being started again; `report` finds out if it stays away
                self.stop_requested = bool(answer_of(question)) or self.stop_requested
        is_due = time.monotonic() - self._asked_at >= ASK_EVERY_SECONDS
        if self._progress_actor is not None and self._question is None and is_due:
            self._question, self._asked_at = self._progress_actor.is_stopping.remote(), time.monotonic()
        return self.stop_requested

    def _collect(self) -> bool:
        """Whether the last report was answered."""
        pending, self._pending = self._pending, None
        try:
            self.stop_requested = bool(answer_of(pending)) or self.stop_requested
            self._silent_since = None
            return True
        except ray_errors():  # it is being started again, or the driver is gone and with it the actor
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since >= LOST_AFTER_SECONDS:
                self._progress_actor, self.is_lost = None, True
            return False


class DriverLogHandler(logging.Handler):
    """Carries a worker's warnings to the driver's terminal; everything else stays in Ray's log files."""

    def __init__(self, progress_actor: Any) -> None:
        super().__init__(logging.WARNING)
        self._progress_actor = progress_actor

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(*ray_errors()):  # nobody is there to read it
            self._progress_actor.warn.remote(record.getMessage())


class _Eta(ProgressColumn):
    """Time left, from the mean speed so far of this run."""

    def render(self, task: Task) -> Text:
        left = eta_seconds(task.percentage / 100, task.elapsed or 0.0)
        return Text("ETA --:--" if left is None else f"ETA {int(left) // 60}:{int(left) % 60:02d}")


def eta_seconds(fraction: float, elapsed_seconds: float) -> float | None:
    """Seconds left at the mean speed so far; None while that is unknown."""
    if fraction < 0.01:
        return None
    return elapsed_seconds * (1 - fraction) / fraction


@contextmanager
def show_progress(progress_actors: Mapping[str, Any], console: Console) -> Iterator[None]:
    """Draw named progress_actors until the block ends: a bar each on a terminal, a line each every 15 s elsewhere."""
    stop = threading.Event()
    draw = _draw_bars if console.is_terminal else _print_lines
    thread = threading.Thread(target=draw, args=(progress_actors, console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        for title, progress_actor in progress_actors.items():
            _read(
                progress_actor, StageProgress(), console, _prefix(progress_actors, title)
            )  # warnings of the last moment


def _prefix(progress_actors: Mapping[str, Any], title: str) -> str:
    """What tells the warnings of one progress_actor from those of others."""
    return f"{title}: " if len(progress_actors) > 1 else ""


def _read(progress_actor: Any, last: StageProgress, console: Console, prefix: str) -> StageProgress:
    silence: tuple[type[BaseException], ...] = (*ray_errors(), TimeoutError)
    try:
        progress, warnings = answer_of(progress_actor.read.remote(), timeout=5)
    except silence:
        return last
    for message in warnings:
        console.print(f"warning: {prefix}{message}", highlight=False, markup=False, soft_wrap=True)
    return progress  # type: ignore[no-any-return]


def _draw_bars(progress_actors: Mapping[str, Any], console: Console, stop: threading.Event) -> None:
    columns: Sequence[ProgressColumn] = (
        TextColumn("[bold]{task.fields[title]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        _Eta(),
        TextColumn("{task.description}"),
    )
    last = dict.fromkeys(progress_actors, StageProgress())
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        tasks = {title: progress.add_task(at.describe(), total=1.0, title=title) for title, at in last.items()}
        while not stop.wait(0.5):
            for title, progress_actor in progress_actors.items():
                last[title] = _read(progress_actor, last[title], console, _prefix(progress_actors, title))
                at = last[title]
                progress.update(tasks[title], completed=at.total_fraction, description=at.describe())


def _print_lines(progress_actors: Mapping[str, Any], console: Console, stop: threading.Event) -> None:
    last, start = dict.fromkeys(progress_actors, StageProgress()), time.monotonic()
    width = max(map(len, progress_actors))
    while not stop.wait(LINE_EVERY_SECONDS):
        for title, progress_actor in progress_actors.items():
            at = last[title] = _read(progress_actor, last[title], console, _prefix(progress_actors, title))
            left = eta_seconds(at.total_fraction, time.monotonic() - start)
            eta = "" if left is None or at.total_fraction >= 1 else f", about {left / 60:.0f} min left"
            line = f"{title:{width}} {at.total_fraction:4.0%}  {at.describe()}{eta}"
            console.print(line, highlight=False, soft_wrap=True)
