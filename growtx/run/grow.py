"""Running a plan: prepare, train the stages group by group, write a model and a report."""

from __future__ import annotations

import _thread
import itertools
import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from growtx.compat.ray import ray_errors
from growtx.exceptions import GrowtxError, RunsFailedError
from growtx.growth.flops import active_parameters
from growtx.growth.plan import Stage
from growtx.growth.results import load_model
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import num_params
from growtx.models.saving import save_directory
from growtx.report.growth import write_report
from growtx.report.model_card import write_model_card
from growtx.run.config import RunConfig
from growtx.run.controls import checked_benchmarks, finish_controls, prepare_controls, score_benchmarks
from growtx.run.directory import RunStatus, begin_run, recording_status
from growtx.run.prepare import prepare, preparing
from growtx.storage import Storage
from growtx.store.manifest import Manifest, latest_manifest
from growtx.store.runs import MetricsLog
from growtx.train.checkpoints import remove_checkpoints
from growtx.train.claims import RunClaims
from growtx.train.job import TrainJob
from growtx.train.places import IN_THIS_PROCESS, ON_RAY, Place
from growtx.train.progress import answer_of, show_progress, start_progress_actor

MODEL_DIR = "model"
TELL_EVERY_SECONDS = 1.0
START_SECONDS = 20.0  # that workers get to begin with after they were told to stop; until then nothing can be lost


@dataclass(frozen=True)
class GrowthResult:
    """What a run leaves behind.

    Attributes:
        stopped: whether it was asked to stop early; `--resume` continues it.
        seconds: by phase (preparing, training, reporting).
    """

    run_dir: str
    last: Manifest | None
    report: str | None
    stopped: bool
    seconds: dict[str, float]


def grow(
    config: RunConfig, run_dir: str, *, resume: bool = False, console: Console | None = None, here: bool = False
) -> GrowthResult:
    """Run a plan from its first unfinished stage to its end.

    Args:
        here: in this process, without Ray.

    Raises:
        GrowtxError: in one sentence; everything already finished is kept.
    """
    console, place = console or Console(), ON_RAY
    if here:
        place = IN_THIS_PROCESS
        place.check(config.largest_group())  # a process is there already: refuse before anything is written
    benchmarks = checked_benchmarks(config)
    run = begin_run(run_dir, config, resume=resume, console=console)
    clock = _PhaseTimer()
    with recording_status(run) as status:
        with place.connected(config.largest_group()):
            with clock("preparing"), preparing(console):
                prepared = prepare(config, run)
                controls = prepare_controls(config.model_copy(update={"benchmarks": benchmarks}), run)
            place.check(config.largest_group())
            console.print(_plan_table(prepared.job, controls))
            status.begin(prepared.job.num_stages)
            with clock("training"):
                status.is_stopped = _train_with_progress([prepared.job, *controls.values()], status, console, place)
            if benchmarks.tasks and not status.is_stopped:
                with clock("evaluating"):
                    finish_controls(controls)
                    score_benchmarks(benchmarks, run, controls, partial(console.print, highlight=False, markup=False))
        with clock("reporting"):
            report = finish_run(run, finished=not status.is_stopped)
    return GrowthResult(run.root, latest_manifest(run), report, status.is_stopped, clock.seconds)


class _PhaseTimer:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = round(time.monotonic() - start, 1)


def _train_with_progress(jobs: list[TrainJob], status: RunStatus, console: Console, place: Place) -> bool:
    """The run and its controls, one after the other on one worker group; returns whether a stop was asked for."""
    progress_actor = start_progress_actor()

    def request_stop() -> None:
        progress_actor.request_stop.remote()
        status.stop()

    def has_begun() -> bool:
        return bool(answer_of(progress_actor.has_begun.remote(), timeout=5))

    with show_progress({"growing": progress_actor}, console), stop_on_signals(request_stop, console, has_begun):
        return run_jobs(jobs, progress_actor, place=place)
    return True  # they were told to stop before they had begun


def unfinished_stages(job: TrainJob) -> list[Stage]:
    """Stages of the job that have no manifest yet."""
    last = latest_manifest(Storage(job.run_dir))
    return [stage for stage in job.stages if last is None or stage.index > last.index]


def run_jobs(
    jobs: Sequence[TrainJob], progress_actor: Any = None, claims: RunClaims | None = None, place: Place = ON_RAY
) -> bool:
    """Train all unfinished stages, a worker group for each change of resources; returns whether a stop was asked for.

    Raises:
        GrowtxError: of the run.
        RunsFailedError: naming those of several runs that failed.
    """
    failed: dict[str, GrowtxError] = {}
    parts = [part for job in jobs for part in _jobs_by_resources(job)]
    for _, group in itertools.groupby(parts, key=lambda part: part.resources):
        if todo := [part for part in group if part.run_dir not in failed]:
            outcome = place.fit(todo, progress_actor, claims)
            failed |= outcome.failed
            if outcome.stopped:
                return True
    if failed and len({job.run_dir for job in jobs}) > 1:
        raise RunsFailedError(failed)
    for error in failed.values():
        raise error
    return False


def _jobs_by_resources(job: TrainJob) -> Iterator[TrainJob]:
    """The unfinished stages of a job, as a job for each change of resources."""
    for resources, stages in itertools.groupby(unfinished_stages(job), key=job.resources_of):
        yield job.model_copy(update={"stages": tuple(stages), "resources": resources})


@contextmanager
def stop_on_signals(
    request_stop: Callable[[], Any], console: Console, has_begun: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """SIGTERM (pre-emption) and the first Ctrl-C save a checkpoint and stop; a second Ctrl-C stops at once.

    The block is left, without an exception, where no worker has begun 20 s after that: they may be waiting for nodes.

    Args:
        request_stop: called once more every second until the block ends: whoever is told may have been started anew.
        has_begun: whether there is anybody who could have been told.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _frame: Any) -> None:
        console.print(f"{signal.Signals(number).name}: saving a checkpoint and stopping ...")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        request_stop()
        asked.set()

    asked, overdue, ended = threading.Event(), threading.Event(), threading.Event()
    teller = threading.Thread(target=_tell_again, args=(request_stop, has_begun, asked, overdue, ended), daemon=True)
    teller.start()
    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        if not overdue.is_set():
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        ended.set()
        teller.join()


def _tell_again(
    request_stop: Callable[[], Any],
    has_begun: Callable[[], bool],
    asked: threading.Event,
    overdue: threading.Event,
    ended: threading.Event,
) -> None:
    began, asked_at = False, math.inf
    while not ended.wait(TELL_EVERY_SECONDS):
        with suppress(*ray_errors(), TimeoutError):
            began = began or has_begun()
        if not asked.is_set():
            continue
        asked_at = min(asked_at, time.monotonic())
        with suppress(*ray_errors(), GrowtxError):
            request_stop()
        if not began and not overdue.is_set() and time.monotonic() - asked_at >= START_SECONDS:
            overdue.set()
            _thread.interrupt_main()


def finish_run(run: Storage, *, finished: bool) -> str | None:
    """Write the Hugging Face directory and the report for the stages finished so far."""
    MetricsLog(run).join()
    if latest_manifest(run) is None:
        return None
    if finished:
        remove_checkpoints(run)
    transformers_logging.disable_progress_bar()
    model, tokenizer = load_model(run.root)
    with tempfile.TemporaryDirectory() as directory:
        save_directory(model, tokenizer, Path(directory))
        run.replace_directory(directory, MODEL_DIR, last="config.json")
    write_model_card(run.root)
    return write_report(run.root)


def _plan_table(job: TrainJob, controls: Mapping[int, TrainJob]) -> Table:
    """The stages before anything runs: blocks, what trains, how long."""
    table = Table(title=f"Plan: {len(job.stages)} stages", title_justify="left")
    for column in ("#", "stage", "blocks", "trains", "LoRA r", "active", "total", "tokens"):
        table.add_column(
            column, justify="left" if column in ("stage", "trains") else "right", no_wrap=column != "trains"
        )
    rows = [(str(stage.index), stage.name, job, stage) for stage in job.stages]
    rows += [("-", "control", control, stage) for control in controls.values() for stage in control.stages]
    for number, name, owner, stage in rows:
        config: GrowtxConfig = owner.model_at(stage.num_blocks)
        table.add_row(
            number,
            name,
            str(stage.num_blocks),
            _what_trains(stage),
            str(stage.lora.rank) if stage.lora else "-",
            f"{active_parameters(config, stage):,}",
            f"{num_params(config).total:,}",
            f"{owner.num_tokens(stage):,}",
        )
    return table


def _what_trains(stage: Stage) -> str:
    parts = []
    if stage.train_substrate:
        parts.append("substrate")
    if stage.num_active:
        blocks = stage.active_blocks
        parts.append(f"block {blocks.stop}" if len(blocks) == 1 else f"blocks {blocks.start + 1}-{blocks.stop}")
    if stage.head:
        parts.append("head")
    return " + ".join(parts)
