"""A study: variants of one run under one protocol, at equal tokens and equal FLOPs, over learning rates and seeds.

RUN/run.yaml          the resolved configuration
RUN/shared/           tokenizer and substrate, shared by the variants with the same ones
RUN/runs/NAME/        a run directory for each: variant, comparison, learning rate, seed
RUN/study.json        the result of each run, finished or not
RUN/report.html       tables and figures
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from growtx.command import command_line
from growtx.evaluate.cluster import evaluate_path
from growtx.evaluate.results import read_evaluation, save_evaluation
from growtx.exceptions import ConfigError, GrowtxError, RunsFailedError, TrainingError
from growtx.models.configuration import GrowtxConfig
from growtx.run.directory import RunStatus, begin_run, recording_status, write_status
from growtx.run.pool import TrainTask, cluster_capacity, train_concurrently
from growtx.run.prepare import cache_dir, prepare, preparing
from growtx.storage import Storage
from growtx.study.config import StudyConfig, VariantConfig
from growtx.study.report import terminal_tables, write_study_report
from growtx.study.results import STUDY_FILE, RunResult, StudyResults, best_rate, variant_summaries
from growtx.study.runs import StudyRun, prepare_run, read_result, runs_of
from growtx.train.checkpoints import remove_checkpoints
from growtx.train.claims import RunClaims, forget_claims, start_registry
from growtx.train.cluster import check_cluster, connected
from growtx.train.job import TrainJob


@dataclass(frozen=True)
class StudyOutcome:
    """What a study leaves behind; `stopped`: --resume continues it. `report` is None while no run has finished."""

    run_dir: str
    results: StudyResults
    report: str | None
    stopped: bool


def run_study(
    config: StudyConfig, run_dir: str, *, resume: bool = False, console: Console | None = None
) -> StudyOutcome:
    """Train what is missing, compare, report.

    Raises:
        GrowtxError: in one sentence; every finished stage is kept. A run that diverges is a result, not an error.
    """
    console = console or Console()
    study = begin_run(run_dir, config, resume=resume, console=console)
    with recording_status(study) as status:
        with connected(config.resources, claim=False):
            work = _StudyRunner(config, study, status, console)
            check_cluster(config.resources)
            status.is_stopped = work.train()
            if not status.is_stopped:
                _score_tasks(config, study, work.results())
        results = work.results()
        report = _report(study, results, console)
    return StudyOutcome(study.root, results, report, status.is_stopped)


class _StudyRunner:
    """The runs of a study so far: those of the first seed at all learning rates, then the best rates on all seeds."""

    def __init__(self, config: StudyConfig, study: Storage, status: RunStatus, console: Console) -> None:
        self._config, self._study, self._status, self._console = config, study, status, console
        self._cache = cache_dir(config, study)
        self._shared = study.child("shared")
        with preparing(console):
            base = config.base_run(VariantConfig(name="shared")).model_copy(update={"cache_dir": self._cache})
            job = prepare(base, self._shared).job
        self._shape: GrowtxConfig = job.model_at(job.stages[-1].num_blocks)
        self._runs: list[StudyRun] = []
        self._failures: dict[str, str] = {}

    def train(self) -> bool:
        """Train everything that is missing; returns whether a stop was asked for."""
        first, *others = self._config.seeds
        to_choose = any(len(self._config.rates_of(variant)) > 1 for variant in self._config.variants)
        rounds = [[first], others] if to_choose and others else [[first, *others]]
        for number, seeds in enumerate(rounds):
            found = [run for seed in seeds for run in self._planned(seed, only_best=number > 0)]
            self._runs += found
            if self._train(found):
                return True
        return False

    def _planned(self, seed: int, *, only_best: bool) -> list[StudyRun]:
        runs = [run for variant in self._config.variants for run in runs_of(self._config, variant, self._shape, seed)]
        if not only_best:
            return runs
        tried = self.results().runs
        chosen = {
            (run.variant, run.equal): best_rate(
                [one for one in tried if (one.variant, one.equal) == (run.variant, run.equal)], self._config.seeds[0]
            )
            for run in runs
        }
        return [run for run in runs if run.learning_rate == chosen[run.variant, run.equal]]

    def _train(self, runs: Sequence[StudyRun]) -> bool:
        with self._console.status(f"Preparing {len(runs)} runs ..."):
            jobs = [prepare_run(run, self._config, self._study, self._shared, self._cache).job for run in runs]
        groups = concurrent_tasks(jobs, self._study, max_concurrent=self._config.max_concurrent)
        result = train_concurrently(groups, retries=0, on_stop=self._status.stop, console=self._console)
        forget_claims(self._study)
        for error in result.failed.values():
            self._remember(error, jobs)
        for job in jobs:
            storage = job.run_storage
            is_finished = TrainTask("", (job,)).is_finished
            if is_finished:
                remove_checkpoints(storage)
            state = "finished" if is_finished else "failed" if job.run_dir in self._failures else "stopped"
            write_status(storage, state, job.num_stages)
        return result.stopped

    def _remember(self, error: GrowtxError, jobs: Sequence[TrainJob]) -> None:
        """A run that failed is a result; a worker group that failed ends the study."""
        if not isinstance(error, RunsFailedError):
            if len(jobs) > 1:
                raise error
            error = RunsFailedError({jobs[0].run_dir: error})
        for run_dir, reason in error.failures.items():
            if not isinstance(reason, TrainingError):
                raise reason
            self._failures[run_dir] = str(reason)

    def results(self) -> StudyResults:
        """Every run planned so far, as recorded in its manifests."""
        return StudyResults(
            name=self._config.name,
            control=self._config.control,
            equal=self._config.equal,
            first_seed=self._config.seeds[0],
            command=command_line(),
            runs=tuple(read_result(run, self._study, self._failure(run)) for run in self._runs),
        )

    def _failure(self, run: StudyRun) -> str:
        return next((why for place, why in self._failures.items() if place.endswith(f"/{run.name}")), "")


def concurrent_tasks(jobs: Sequence[TrainJob], study: Storage, *, max_concurrent: int | None) -> list[TrainTask]:
    """Worker groups that share the jobs: each takes the next unclaimed run, so none waits for another.

    Raises:
        ConfigError: two jobs have the same directory.
    """
    if len({job.run_dir for job in jobs}) != len(jobs):
        raise ConfigError("two runs of the study have the same name", "Make variant names and seeds distinct")
    todo = [job for job in jobs if not TrainTask("", (job,)).is_finished]
    if not todo:
        return []
    needs = TrainTask("", tuple(todo)).needs
    fitting = [int(total / need) for total, need in zip(cluster_capacity(), needs, strict=True) if need]
    number = max(1, min(len(todo), max_concurrent or min(fitting)))
    registry = start_registry(study)
    names = [f"worker group {index}" for index in range(1, number + 1)]
    return [TrainTask(name, tuple(todo), RunClaims(registry, name)) for name in names]


def _score_tasks(config: StudyConfig, study: Storage, results: StudyResults) -> None:
    """Score the configured tasks at all depths of the best run of the first seed; existing scores are kept."""
    if not config.benchmarks.tasks:
        return
    benchmark = config.benchmarks.benchmark()
    for row in variant_summaries(results):
        run: RunResult | None = next((run for run in row.runs if run.seed == config.seeds[0]), None)
        if run is None:
            continue
        own = study.child(run.directory)
        before = read_evaluation(own)
        if before is None or not before.scores:
            save_evaluation(own, evaluate_path(own.root, benchmark, depths="all"))


def _report(study: Storage, results: StudyResults, console: Console) -> str | None:
    study.write_text(STUDY_FILE, results.model_dump_json(indent=1) + "\n")
    for table in terminal_tables(results):
        console.print(table)
    return write_study_report(study, results) if variant_summaries(results) else None
