"""The trials of one stage under Ray Tune, several at a time, recorded so that an interrupted sweep can be resumed.

The records are ours (Tune's own restoring cannot handle a nested run); Tune schedules, stops and isolates failures.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import ray
from pydantic import Field
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from rich.console import Console
from rich.live import Live
from rich.table import Table

from growtx.compat.ray import TUNE_ENVIRONMENT, replay, set_environment
from growtx.config import ConfigModel
from growtx.growth.flops import stage_flops
from growtx.models.counting import monolithic_flops
from growtx.storage import Storage
from growtx.store.trials import TrialEvaluation, TrialRecord, best_trial, read_trials, write_trial
from growtx.sweep.search import METRIC, Dimension, Proposer, RecordedSearch, Values, planned_values
from growtx.sweep.trial import FRACTION, TRIAL_MEMORY_BYTES, StageSearch, Trial, TrialCoordinator
from growtx.train.progress import StageProgress, insist, start_control_actor
from growtx.train.settings import ResourcesConfig

# The live table of a stage's trials: redrawn on a terminal; elsewhere a line is printed when a trial ends.


Read = Callable[[], tuple[Mapping[int, StageProgress], list[str]]]


def show_value(value: Any) -> str:
    """A value of a trial in a cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "+".join(name.removesuffix("_proj") for name in value)
    return str(value)


class TrialTable:
    """Records and what is known of running trials.

    Args:
        records: by number; changed by others while this draws.
    """

    def __init__(self, title: str, num_trials: int, records: Mapping[int, TrialRecord]) -> None:
        self._title, self._num_trials, self._records = title, num_trials, records
        self._announced = {number for number, record in records.items() if record.state != "running"}

    def show(self, read: Read, console: Console, stop: threading.Event) -> None:
        """Draw until `stop` is set."""
        if not console.is_terminal:
            while not stop.wait(0.5):
                self._announce_ended(console, read()[1])
            self._announce_ended(console, read()[1])
            return
        with Live(self.render({}), console=console, refresh_per_second=2) as live:
            while not stop.wait(0.5):
                progress, warnings = read()
                for warning in warnings:
                    console.print(f"warning: {warning}", highlight=False, markup=False)
                live.update(self.render(progress))
            live.update(self.render({}))

    def _announce_ended(self, console: Console, warnings: list[str]) -> None:
        lines = [f"warning: {warning}" for warning in warnings]
        for number, record in sorted(self._records.items()):
            if record.state != "running" and number not in self._announced:
                self._announced.add(number)
                lines.append(f"{self._title}: {self._sentence(record)}")
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _sentence(self, record: TrialRecord) -> str:
        values = ", ".join(f"{key}={show_value(value)}" for key, value in record.values.items())
        ended = len(self._announced)
        if record.state == "failed":
            return f"trial {record.label} failed ({ended}/{self._num_trials}; {values}): {record.error}"
        score = "-" if record.bits_per_byte is None else f"{record.bits_per_byte:.4f} bits/byte"
        return f"trial {record.label} {record.state} ({ended}/{self._num_trials}): {score}; {values}"

    def render(self, progress: Mapping[int, StageProgress]) -> Table:
        """All trials so far, the best one marked."""
        records = dict(self._records)
        best = best_trial(list(records.values()))
        ended = sum(record.state != "running" for record in records.values())
        table = Table(title=f"{self._title}: {ended} of {self._num_trials} trials ended", title_justify="left")
        keys = list(dict.fromkeys(key for record in records.values() for key in record.values))
        for column in ("trial", *keys, "state", "done", "bits/byte", "seconds"):
            table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
        for number, record in sorted(records.items()):
            at = progress.get(number, StageProgress())
            running = record.state == "running"
            fraction = at.fraction if running else (record.evaluations[-1].fraction if record.evaluations else 0.0)
            score = at.bits_per_byte if running else record.bits_per_byte
            table.add_row(
                record.label + (" planned" if record.planned else ""),
                *(show_value(record.values.get(key, "-")) for key in keys),
                record.state,
                f"{1.0 if record.state == 'finished' else fraction:.0%}",
                "-" if score is None else f"{score:.4f}",
                f"{record.total_seconds:.0f}",
                style="bold green" if best is not None and number == best.number else "",
            )
        return table


TUNE_DIR = "tune"


class SchedulerConfig(ConfigModel):
    """When unpromising trials are stopped, judged by held-out bits per byte during the stage."""

    kind: Literal["asha", "median", "none"] = Field(
        "asha", description="asha: only the best share continues at each rung; median: those worse than the median stop"
    )
    grace: float = Field(0.25, gt=0, lt=1, description="share of a stage that every trial may train")
    reduction_factor: float = Field(2, gt=1, description="for asha: one trial in this many continues at each rung")

    @property
    def evaluate_every(self) -> float | None:
        """Share of a stage between evaluations."""
        return None if self.kind == "none" else self.grace

    def build(self, records: Sequence[TrialRecord]) -> TrialScheduler:
        """Tune's scheduler, knowing what trials reported to an earlier process."""
        scheduler: Any
        if self.kind == "none":
            return FIFOScheduler()
        common: dict[str, Any] = {"time_attr": FRACTION, "metric": METRIC, "mode": "min", "grace_period": self.grace}
        if self.kind == "asha":
            scheduler = ASHAScheduler(**common, max_t=1.0, reduction_factor=self.reduction_factor)
        else:  # never pausing: a paused trial would have to be restored from a checkpoint of Tune's
            scheduler = MedianStoppingRule(**common, min_time_slice=math.inf)
        for record in records:
            _replay(scheduler, record)
        return scheduler  # type: ignore[no-any-return]


def _replay(scheduler: Any, record: TrialRecord) -> None:
    """Tell a scheduler what an earlier process reported.

    This includes trials that continue, because they report only what comes after their checkpoint.
    """
    if record.state == "failed":
        return
    reports = [{FRACTION: one.fraction, METRIC: one.bits_per_byte} for one in record.evaluations]
    last = {FRACTION: 1.0, METRIC: record.bits_per_byte} if record.state == "finished" else None
    replay(scheduler, f"past-{record.number}", reports, last)


class Recorder(tune.Callback):
    """Records the outcome of every trial."""

    def __init__(self, run: Storage, search: StageSearch, records: Sequence[TrialRecord], coordinator: Any) -> None:
        self._run, self._search, self._coordinator = run, search, coordinator
        self.records = {record.number: record for record in records}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, values = trial.config["number"], trial.config["values"]
        stage = self._search.stage({})
        before = self.records.get(number)
        self.records[number] = TrialRecord(
            stage=stage.index,
            stage_name=stage.name,
            number=number,
            values=values,
            planned=trial.config["planned"],
            evaluations=before.evaluations if before else [],  # it goes on from a checkpoint
        )
        write_trial(self._run, self.records[number])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        record = self.records[trial.config["number"]]
        if not math.isfinite(result.get(METRIC, math.nan)):  # asked to stop, or about to fail
            return
        record.bits_per_byte = result[METRIC]
        record.num_tokens = result["num_tokens"]
        record.seconds, record.total_seconds = result["seconds"], round(result["total_seconds"], 3)
        record.flops, record.monolithic_flops = self._flops(record, prefix_cached=result["prefix_cached"])
        if result.get("ended") == "finished":
            record.state = "finished"
        else:
            earlier = [one for one in record.evaluations if one.fraction < result[FRACTION]]
            record.evaluations = [*earlier, TrialEvaluation(fraction=result[FRACTION], bits_per_byte=result[METRIC])]
        write_trial(self._run, record)

    def _flops(self, record: TrialRecord, *, prefix_cached: bool) -> tuple[float, float]:
        """Of a trial's own steps (a cached prefix is counted once for all, not here), and of monolithic ones."""
        stage, job = self._search.stage(record.values), self._search.job
        config = job.model_at(stage.num_blocks)
        own = stage_flops(config, stage, prefix_cached=prefix_cached).total
        return own * record.num_tokens, monolithic_flops(config, job.context_length).total * record.num_tokens

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self.records[trial.config["number"]]
        if record.state == "running" and trial.last_result.get("ended") is None:
            record.state = "stopped"
            write_trial(self._run, record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self.records.get(trial.config["number"])
        if record is None:  # its process did not even start
            self.on_trial_start(iteration, trials, trial)
            record = self.records[trial.config["number"]]
        record.state = "failed"
        record.error = (
            insist(lambda: self._coordinator.failure.remote(record.number)) or "its process ended; see Ray's logs"
        )
        write_trial(self._run, record)


@dataclass
class SweepHandle:
    """A handle for whoever may ask a sweep to stop."""

    coordinator: Any = None
    search: RecordedSearch | None = None
    stopped: bool = False

    def request_stop(self) -> None:
        """Start no more trials and let those that run save a checkpoint and end."""
        self.stopped = True
        if self.search is not None:
            self.search.is_stopping = True
            self.coordinator.request_stop.remote()


def num_concurrent(resources: ResourcesConfig, limit: int | None) -> int:
    """Trials whose workers fit into the cluster at the same time; Ray must be connected."""
    total = ray.cluster_resources()
    fits = total.get("CPU", 0.0) / resources.num_cpus
    if resources.num_gpus:
        fits = min(fits, total.get("GPU", 0.0) / resources.num_gpus)
    return max(1, min(int(fits + 1e-6), limit or 10**6))


def run_trials(
    search: StageSearch,
    proposer: Proposer,
    dimensions: Mapping[str, Dimension],
    *,
    scheduler: SchedulerConfig,
    include_planned: bool,
    max_concurrent: int | None,
    sweeping: SweepHandle,
    console: Console,
) -> list[TrialRecord]:
    """Run what a stage's sweep still has to do; returns all of its records. Ray must be connected."""
    run, stage = search.job.run_storage, search.stage({})
    records = read_trials(run, stage.index)
    batch = search.job.training.global_batch_size
    planned: Values | None = planned_values(stage, dimensions, batch) if include_planned else None
    searcher = RecordedSearch(proposer, records, num_trials=search.num_trials, planned=planned, dimensions=dimensions)
    if not searcher.num_left or sweeping.stopped:
        return records
    set_environment(TUNE_ENVIRONMENT)
    coordinator = start_control_actor(TrialCoordinator)
    sweeping.coordinator, sweeping.search = coordinator, searcher
    recorder = Recorder(run, search, records, coordinator)
    table = TrialTable(f"Stage {stage.index} ({stage.name})", search.num_trials, recorder.records)
    trial = tune.with_resources(
        tune.with_parameters(Trial, search=search, coordinator=coordinator),
        tune.PlacementGroupFactory([{"memory": TRIAL_MEMORY_BYTES}]),
    )
    tuner = tune.Tuner(
        trial,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler.build(records),
            num_samples=searcher.num_left,
            reuse_actors=True,
            max_concurrent_trials=num_concurrent(search.job.resources_of(stage), max_concurrent),
            trial_dirname_creator=lambda trial: f"{trial.config['number']:03d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"stage-{stage.index:02d}-{os.urandom(4).hex()}",
            storage_path=run.path(TUNE_DIR),
            callbacks=[recorder],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the table, in a sentence each
    with _shown(table, coordinator, console):
        tuner.fit()
    sweeping.search = None
    ray.kill(coordinator)
    _remove_leftovers(run, recorder.records)
    return sorted(recorder.records.values(), key=lambda record: record.number)


@contextmanager
def _shown(table: TrialTable, coordinator: Any, console: Console) -> Iterator[None]:
    stop = threading.Event()

    def read() -> tuple[dict[int, Any], list[str]]:
        with suppress(ray.exceptions.RayError, TimeoutError):
            return ray.get(coordinator.read.remote(), timeout=5)  # type: ignore[no-any-return]
        return {}, []

    thread = threading.Thread(target=table.show, args=(read, console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _remove_leftovers(run: Storage, records: Mapping[int, TrialRecord]) -> None:
    """Tune's bookkeeping, and the checkpoints of trials that ended."""
    from growtx.store.trials import trial_dir
    from growtx.train.checkpoints import remove_checkpoints

    if run.exists(TUNE_DIR):
        run.remove(TUNE_DIR)
    for record in records.values():
        if record.state != "running":
            remove_checkpoints(run.child(trial_dir(record.stage, record.number)))
