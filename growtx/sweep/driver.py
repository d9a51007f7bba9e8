"""A sweep: trials of one stage, or of all stages one after the other, each on the best model of the stage before.

RUN/trials/stage-KK/NNN/     the outcome of a trial: trial.json, its metrics, its manifest
RUN/manifests/, RUN/blobs/   the lineage of the best trials, as `growtx grow` would have left it
RUN/best-plan.yaml           a complete preset that reproduces that lineage
RUN/report.html              the growth report, with the search in it
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console

from growtx.command import resume_command
from growtx.config import to_yaml
from growtx.exceptions import ConfigError, TrainingError
from growtx.growth.plan import PlanConfig, Stage
from growtx.growth.results import find_result
from growtx.run.config import RunConfig
from growtx.run.directory import begin_run, recording_status
from growtx.run.grow import finish_run, stop_on_signals
from growtx.run.prepare import Prepared, prepare, preparing
from growtx.storage import Storage
from growtx.store.manifest import MANIFESTS_DIR, latest_manifest, write_manifest
from growtx.store.runs import MetricsLog, read_metrics
from growtx.store.trials import TrialRecord, best_trial, read_trials, trial_dir
from growtx.store.verify import verify
from growtx.sweep.config import SweepConfig
from growtx.sweep.search import GridProposer, make_proposer, stage_with_values
from growtx.sweep.trial import StageSearch
from growtx.sweep.tune import SweepHandle, run_trials
from growtx.train.cluster import check_cluster, connected

BEST_PLAN_FILE = "best-plan.yaml"


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves behind; `stopped`: `--resume` continues it."""

    run_dir: str
    stopped: bool
    best: tuple[TrialRecord, ...]
    best_plan: str | None
    report: str | None


def sweep(config: SweepConfig, run_dir: str, *, resume: bool = False, console: Console | None = None) -> SweepResult:
    """Search the stages of a plan.

    Raises:
        GrowtxError: in one sentence; every trial that has ended is kept.
    """
    console = console or Console()
    plan_config = _planned_run(config)
    run = begin_run(run_dir, config, resume=resume, console=console)
    sweeping = SweepHandle()
    with recording_status(run) as status:

        def request_stop() -> None:
            status.stop()
            sweeping.request_stop()

        with connected(config.resources, claim=False):
            with preparing(console):
                prepared = prepare(plan_config, run)
            check_cluster(config.resources)
            status.begin(prepared.job.num_stages)
            with stop_on_signals(request_stop, console):
                _SweepRunner(config, plan_config, prepared, run, sweeping, console).stages()
        best = _best_trials(run)
        best_plan = _write_best_plan(plan_config, run, best) if best else None
        report = finish_run(run, finished=not sweeping.stopped)
    return SweepResult(run.root, sweeping.stopped, tuple(best), best_plan, report)


def _planned_run(config: SweepConfig) -> RunConfig:
    """The run whose stages are searched: the plan, or what is left of it from the chosen stage on.

    Raises:
        ConfigError: the parent is not what the chosen stage builds on.
    """
    chosen = config.sweep.stage
    if chosen is None or chosen == 1:
        return config.run_config()
    assert config.parent is not None
    if config.plan.schedule == "plan":
        raise ConfigError(
            f"--stage {chosen}: plan.schedule=plan is one schedule of all stages, and a search of one knows no others",
            "Search all stages (--greedy), or set plan.schedule=per_stage",
        )
    lineage = find_result(config.parent).require_lineage()
    stage = config.stages()[0]
    before = next((manifest for manifest in lineage.manifests if manifest.index == chosen - 1), None)
    if before is None or before.num_blocks != stage.num_blocks_before:
        depths = ", ".join(f"stage {m.index} has {m.num_blocks} blocks" for m in lineage.manifests)
        raise ConfigError(
            f"parent={config.parent}: --stage {chosen} needs a finished stage {chosen - 1} of "
            f"{stage.num_blocks_before} blocks, but {depths}",
            "Grow the stages before it with the same plan, or choose another stage",
        )
    rest = config.plan.stage_configs()[chosen - 1 :]
    plan = config.plan.model_copy(update={"grow": None, "stages": rest})
    return config.run_config(parent=lineage.storage.path(f"{MANIFESTS_DIR}/{before.file_name}"), plan=plan)


@dataclass(frozen=True)
class _SweepRunner:
    """The stages of one sweep, searched in order."""

    config: SweepConfig
    planned: RunConfig
    prepared: Prepared
    run: Storage
    sweeping: SweepHandle
    console: Console

    def stages(self) -> None:
        """Run every stage's trials, then take the best one into the lineage."""
        for position in range(len(self.config.stages())):
            stage = self.prepared.job.stages[position]
            last = latest_manifest(self.run)
            if last is not None and last.index >= stage.index:
                continue
            records = self._trials(position, stage)
            if self.sweeping.stopped:
                return
            best = best_trial(records)
            if best is None:
                raise TrainingError(
                    f"no trial of stage {stage.index} ({stage.name}) finished: {_reasons(records)}",
                    f"Finished stages are kept; go on in another space: {self._gentler(stage, records)}",
                )
            promote_trial(self.run, best)
            score, values = best.bits_per_byte, ", ".join(f"{key}={value}" for key, value in best.values.items())
            line = f"stage {stage.index} ({stage.name}): best is trial {best.label}, {score:.4f} bits/byte; {values}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _gentler(self, stage: Stage, records: list[TrialRecord]) -> str:
        """The command that goes on with learning rates below all that were tried."""
        lowest = min(record.values.get("learning_rate", stage.train.learning_rate) for record in records)
        rates = f"sweep.space.learning_rate=[{lowest / 10:.2g}, {lowest / 3:.2g}]"
        return resume_command("sweep", self.run.root, rates)

    def _trials(self, position: int, stage: Stage) -> list[TrialRecord]:
        settings, first = self.config.sweep, self.prepared.job.stages[0]
        dimensions = settings.space.dimensions(stage)
        proposer = make_proposer(
            settings.sampler, dimensions, seed=self.config.seed, stage=stage.index, num_trials=settings.num_trials
        )
        grid_size = len(proposer) if isinstance(proposer, GridProposer) else None
        search = StageSearch(
            job=self.prepared.job,
            plan=self.planned.plan,
            position=position,
            num_trials=grid_size or settings.num_trials,
            evaluate_every=settings.scheduler.evaluate_every,
            num_stages_before=first.index - 1,
            num_blocks_before=first.num_blocks_before,
        )
        return run_trials(
            search,
            proposer,
            dimensions,
            scheduler=settings.scheduler,
            include_planned=settings.include_planned and grid_size is None,
            max_concurrent=settings.max_concurrent,
            sweeping=self.sweeping,
            console=self.console,
        )


def _reasons(records: list[TrialRecord]) -> str:
    errors = dict.fromkeys(record.error for record in records if record.error)
    return "; ".join(error.rstrip(".") for error in errors if error) or "all were stopped"


def promote_trial(run: Storage, best: TrialRecord) -> None:
    """Adopt a trial's stage and metrics into the lineage, and remove what the other trials stored.

    Repeating this changes nothing.
    """
    trial = run.child(trial_dir(best.stage, best.number))
    manifest = latest_manifest(trial)
    assert manifest is not None, "a finished trial has a manifest"
    log = MetricsLog(run)
    log.rewind(stage=best.stage, step=-1)
    for row in read_metrics(trial):
        log.append(row)
    log.flush()
    write_manifest(run, manifest)
    verify(run.root, prune=True, min_age=timedelta(0))  # ours alone: the run is locked, and its trials have ended


def _best_trials(run: Storage) -> list[TrialRecord]:
    """The best trial of every stage that is in the lineage."""
    last = latest_manifest(run)
    records = read_trials(run)
    stages = sorted({record.stage for record in records if last is not None and record.stage <= last.index})
    found = (best_trial([record for record in records if record.stage == stage]) for stage in stages)
    return [record for record in found if record is not None]


def best_plan(config: RunConfig, best: list[TrialRecord]) -> RunConfig:
    """The configuration whose stages have the best values; stages that were not searched stay as planned."""
    written = list(config.plan.stage_configs())
    first = best[0].stage
    for record in best:
        written[record.stage - first] = stage_with_values(written[record.stage - first], record.values)
    plan = config.plan.model_dump(mode="json") | {"grow": None}
    plan["stages"] = [stage.model_dump(mode="json") for stage in written]
    return config.model_copy(update={"name": f"{config.name}-best", "plan": PlanConfig.model_validate(plan)})


def _write_best_plan(config: RunConfig, run: Storage, best: list[TrialRecord]) -> str:
    scores = "\n".join(f"#   stage {r.stage}: trial {r.label}, {r.bits_per_byte:.4f} bits per byte" for r in best)
    header = f"# Found by growtx sweep in {run.path('')}:\n{scores}\n"
    run.write_text(BEST_PLAN_FILE, header + to_yaml(best_plan(config, best)))
    return run.path(BEST_PLAN_FILE)
