"""Specialists: several models grown at the same time on one tokenizer and substrate, then merged by their logits.

RUN/run.yaml                 the resolved configuration
RUN/trunk/                   what all specialists branch from, if they do: grown first, or taken over from another run
RUN/shared/                  tokenizer and substrate, the trunk's or built from the data of all specialists
RUN/specialists/NAME/        a run directory for each, as `growtx grow` leaves it
RUN/control/                 the dense control, if requested
RUN/ensemble/                ensemble.json and its merge report
RUN/ensemble-tuned/          the same after the heads were tuned on all data, if requested
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from growtx.command import resume_command
from growtx.config import parse_yaml, to_yaml
from growtx.exceptions import ConfigError, TrainingError, about
from growtx.growth.ensembles import ENSEMBLE_FILE, new_ensemble, read_ensemble
from growtx.growth.flops import check_budget
from growtx.growth.lineage import import_lineage, open_lineage
from growtx.growth.plan import PlanConfig, StageConfig, resolve
from growtx.growth.results import find_result, load_model
from growtx.growth.scaling import lineage_flops
from growtx.merge.driver import MergeConfig, MergeResult, merge
from growtx.models.counting import monolithic_flops
from growtx.run.config import RunConfig, differing_keys
from growtx.run.directory import (
    RunStatus,
    begin_run,
    claim,
    recorded_config,
    recording_status,
    value_at,
    write_status,
)
from growtx.run.grow import finish_run
from growtx.run.pool import PoolResult, TrainTask, train_concurrently
from growtx.run.prepare import Prepared, cache_dir, copy_tokenizer_and_substrate, prepare, preparing
from growtx.specialists.config import CONTROL_RUN, TRUNK_RUN, SpecialistsConfig, TuneHeadsConfig
from growtx.storage import Storage
from growtx.store.manifest import MANIFESTS_DIR, list_manifests, stage_index
from growtx.store.run_records import RUN_FILE
from growtx.train.cluster import check_cluster, connected
from growtx.train.job import TrainJob

SPECIALISTS_DIR = "specialists"
TAKEN_OVER_FILE = "taken-over.json"  # in the trunk's directory: where it is from
ENSEMBLE_DIR = "ensemble"
TUNED_DIR = "ensemble-tuned"


@dataclass(frozen=True)
class SpecialistsResult:
    """The merges made now (of the grown members, then of the tuned ones); `stopped`: --resume continues the run."""

    run_dir: str
    stopped: bool
    merges: tuple[MergeResult, ...]


def grow_specialists(
    config: SpecialistsConfig, run_dir: str, *, resume: bool = False, console: Console | None = None
) -> SpecialistsResult:
    """Grow all specialists, merge them and report.

    Raises:
        GrowtxError: in one sentence; whatever is finished is kept, and other specialists run to completion first.
    """
    console = console or Console()
    run = begin_run(run_dir, config, resume=resume, console=console)
    config = config.model_copy(update={"cache_dir": cache_dir(config, run)})
    merges: tuple[MergeResult, ...] = ()
    with recording_status(run) as status:
        with connected(config.resources, claim=False):
            with preparing(console):
                trunk = prepare_trunk(config, run)
            for name in (*config.names, *(task.name for task in trunk)):
                check_cluster(config.resources_of(name))
            grown = train(trunk, config, status, console)
            conclude(trunk, grown, "No specialist has begun; --resume goes on with it")
            tasks: list[TrainTask] = []
            if not grown.stopped:
                with preparing(console):
                    tasks = prepare_tasks(config, run)
            branched = train(tasks, config, status, console)
        conclude(tasks, branched, "The others are finished; --resume repeats the failed ones")
        if not status.is_stopped:
            merges = merge_all(config, run, tasks)
    return SpecialistsResult(run.root, status.is_stopped, merges)


def train(tasks: list[TrainTask], config: SpecialistsConfig, status: RunStatus, console: Console) -> PoolResult:
    """Train runs side by side, shown beforehand in a table; the status says if a stop was asked for."""
    if not tasks:
        return PoolResult()
    console.print(_task_table(tasks))
    result = train_concurrently(tasks, retries=config.retries, on_stop=status.stop, console=console)
    status.is_stopped = result.stopped
    return result


def conclude(tasks: list[TrainTask], result: PoolResult, remedy: str) -> None:
    """Write models, reports and states; raises TrainingError if one has failed."""
    for task in tasks:
        _finish(task, has_failed=task.name in result.failed)
    if result.failed:
        raise _failure(result.failed, remedy)


def prepare_trunk(config: SpecialistsConfig, run: Storage) -> list[TrainTask]:
    """Prepare the trunk's own run directory; nothing is to be trained where there is none, or it is taken over.

    Raises:
        ConfigError, BudgetError: of the trunk, or of a branch that does not fit on it.
    """
    place = run.child(TRUNK_RUN)
    if config.trunk is None:
        return []
    if config.trunk.run is not None:
        _take_over(config, config.trunk.run, place)
        return []
    job = _prepare_run(config.trunk_config(), place).job
    for specialist in config.specialists:
        plan, last = specialist.plan or config.plan, job.stages[-1]
        with about(f"specialist {specialist.name}"):
            stages = resolve(plan, num_stages_before=last.index, num_blocks_before=last.num_blocks)
            check_budget(job.model_at(stages[-1].num_blocks), stages, plan.budget)
    return [TrainTask(TRUNK_RUN, (job,))]


def _take_over(config: SpecialistsConfig, path: str, place: Storage) -> None:
    """Copy the run that specialists shall branch from, as it is now, unless that was done before.

    Raises:
        ConfigError: it was grown on another shape, tokenizer or substrate than the configuration says.
    """
    if place.exists(TAKEN_OVER_FILE):
        return
    source = find_result(path)
    source.require_lineage()
    if source.home.exists(RUN_FILE):
        where = source.home.path(RUN_FILE)
        _check_blocks(config, path, parse_yaml(source.home.read_text(RUN_FILE), where), where)
    last = import_lineage(source.address, place)
    record = {"run": source.address, "manifest": last.file_name, "digest": last.digest()}
    place.write_text(TAKEN_OVER_FILE, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def _check_blocks(config: SpecialistsConfig, path: str, tree: Any, where: str) -> None:
    """Compare the blocks of a configuration that a run was grown on with our own, as far as it has them."""
    ours = config.model_dump(mode="json", include={"model", "tokenizer", "substrate"})
    theirs = {name: {**block, **(tree.get(name) or {})} for name, block in ours.items()}
    for key in differing_keys(ours, theirs):
        raise ConfigError(
            f"trunk.run={path} was grown with {key}={value_at(theirs, key)}, but the configuration gives "
            f"{value_at(ours, key)}",
            f"Set {key}={value_at(theirs, key)}, as in {where}, or name another run",
        )


def _trunk_flops(config: SpecialistsConfig, trunk: Storage) -> float:
    """Of all stages of a run that was taken over, else of those of the trunk's own plan."""
    lineage = open_lineage(trunk.root)
    plan = config.trunk.plan if config.trunk else None
    since = 0 if plan is None else lineage.last.index - len(resolve(plan, num_blocks_before=1))
    per_step = config.training.global_batch_size * config.model.context_length
    return lineage_flops(lineage.manifests, since=since, tokens_per_step=per_step)


def prepare_tasks(config: SpecialistsConfig, run: Storage) -> list[TrainTask]:
    """Prepare what is shared, then every specialist's own run directory; the control comes last.

    The trunk, if there is one, has been grown: its FLOPs are counted once, for the control.
    """
    shared_dir, trunk = run.child("shared"), run.child(TRUNK_RUN) if config.trunk else None
    total_flops, depth = 0.0, 0
    if trunk is not None:
        copy_tokenizer_and_substrate(shared_dir, trunk)
        total_flops = _trunk_flops(config, trunk)
    shared = prepare(config.shared_config(), shared_dir)
    tasks = []
    for specialist in config.specialists:
        member = config.run_config(specialist, trunk=trunk.root if trunk else None)
        prepared = prepare_member(member, run, shared_dir)
        jobs = [prepared.job]
        total_flops += sum(prepared.job.stage_weights)
        depth = max(depth, prepared.job.stages[-1].num_blocks)
        if config.tune_heads is not None:
            jobs = tuning_jobs(prepared.job, shared, config.tune_heads)
        tasks.append(TrainTask(specialist.name, tuple(jobs)))
    if config.control:
        control = config.control_config(
            shared.job.model_at(depth),
            total_flops,
            num_blocks=depth,
            num_blocks_before=shared.job.stages[0].num_blocks_before,
        )
        tasks.append(TrainTask(CONTROL_RUN, (prepare_member(control, run, shared_dir).job,)))
    return tasks


def tuning_jobs(job: TrainJob, shared: Prepared, settings: TuneHeadsConfig) -> list[TrainJob]:
    """A specialist's own plan, and after it a stage that tunes its head on all data."""
    last = job.stages[-1]
    train = {**last.train.model_dump(exclude={"steps", "seconds", "convergence"}), **settings.model_dump()}
    plan = PlanConfig(stages=(StageConfig(add=0, active=0, train=train),))
    stages = resolve(plan, num_stages_before=last.index, num_blocks_before=last.num_blocks)
    per_token = monolithic_flops(job.model_at(last.num_blocks), _context(job)).total / 3  # roughly the forward passes
    weights = (*job.stage_weights, per_token * settings.tokens)
    whole = {"num_stages": last.index + 1, "stage_weights": weights}
    mixed = {"stages": stages, "packed_path": shared.data.path, "data_fingerprint": shared.data.fingerprint}
    return [job.model_copy(update=whole), job.model_copy(update={**whole, **mixed})]


def merge_all(config: SpecialistsConfig, run: Storage, tasks: list[TrainTask]) -> tuple[MergeResult, ...]:
    """The ensemble of the grown specialists and, where heads were tuned, the ensemble of the tuned ones."""
    members = [task for task in tasks if task.name != CONTROL_RUN]
    grown = {task.name: manifest_path(task.jobs[0]) for task in members}
    tuned = {task.name: manifest_path(task.jobs[-1]) for task in members}
    controls = _controls(config, run)
    made = [_merge(config.merge, run.path(ENSEMBLE_DIR), grown, controls, config.name)]
    if config.tune_heads is not None:
        title, before = f"{config.name}, heads tuned", run.path(ENSEMBLE_DIR)
        made.append(_merge(config.merge, run.path(TUNED_DIR), tuned, controls, title, before=before))
    return tuple(result for result in made if result is not None)


def _merge(
    config: MergeConfig,
    out: str,
    members: Mapping[str, str],
    controls: Mapping[str, nn.Module],
    title: str,
    *,
    before: str | None = None,
) -> MergeResult | None:
    """Merge, unless the same members were merged before."""
    manifest = new_ensemble(out, members, rule=config.rule)
    if Storage(out).exists(ENSEMBLE_FILE) and read_ensemble(out).members == manifest.members:
        return None
    return merge(manifest, out, config, controls=controls, before=before, title=title)


def prepare_member(config: RunConfig, run: Storage, shared: Storage) -> Prepared:
    """Prepare the run directory of a specialist or the control, with the shared tokenizer and substrate in it."""
    place = run.child(CONTROL_RUN if config.name == CONTROL_RUN else f"{SPECIALISTS_DIR}/{config.name}")
    return _prepare_run(config, place, shared)


def _prepare_run(config: RunConfig, place: Storage, shared: Storage | None = None) -> Prepared:
    """Claim a run directory and prepare it; tokenizer and substrate are those of `shared`, or of what it continues."""
    known = place.exists(RUN_FILE)
    if known and config.parent is not None:
        _follow(place, config.parent)
    own = claim(place.root, config, resume=known)
    if config.parent is None and shared is not None:
        copy_tokenizer_and_substrate(own, shared)
    prepared = prepare(config, own)
    write_status(own, "running", prepared.job.num_stages)
    return prepared


def _follow(place: Storage, trunk: str) -> None:
    """Where a run of specialists was moved as a whole, let a branch find its trunk where that is now.

    What was imported from it before is pinned by its hash, so another trunk in its place would be noticed.
    """
    recorded: RunConfig = recorded_config(place)
    moved = recorded.parent != trunk and all(str(path).endswith(f"/{TRUNK_RUN}") for path in (recorded.parent, trunk))
    if moved:
        place.write_text(RUN_FILE, to_yaml(recorded.model_copy(update={"parent": trunk})))


def _finish(task: TrainTask, *, has_failed: bool) -> None:
    """Write the specialist's model directory, report and status."""
    job = task.jobs[-1]
    run = job.run_storage
    finish_run(run, finished=task.is_finished)
    state = "finished" if task.is_finished else "failed" if has_failed else "stopped"
    write_status(run, state, job.num_stages)


def _failure(failed: Mapping[str, Exception], remedy: str) -> TrainingError:
    reasons = "; ".join(f"{name}: {str(error).rstrip('.')}" for name, error in failed.items())
    names = ", ".join(failed)
    return TrainingError(f"{names} failed ({reasons})", remedy)


def manifest_path(job: TrainJob) -> str:
    """The manifest that a job ends with."""
    storage = Storage(job.run_dir)
    last = job.stages[-1].index
    name = next((name for name in list_manifests(storage) if stage_index(name) == last), None)
    if name is None:
        raise ConfigError(
            f"{storage.root} has no finished stage {last}",
            f"Go on with it: {resume_command('grow', storage.root)}",
        )
    return storage.path(f"{MANIFESTS_DIR}/{name}")


def _controls(config: SpecialistsConfig, run: Storage) -> dict[str, nn.Module]:
    """What members and rules are measured beside: the trunk alone, and the control."""
    names = [TRUNK_RUN] * (config.trunk is not None) + [CONTROL_RUN] * config.control
    return {name: load_model(run.path(name))[0] for name in names}


def _context(job: TrainJob) -> int:
    return int(job.architecture["max_position_embeddings"])


def _task_table(tasks: list[TrainTask]) -> Table:
    """Who trains what, before it starts."""
    table = Table(title="1 run" if len(tasks) == 1 else f"{len(tasks)} runs", title_justify="left")
    for column in ("name", "stages", "blocks", "tokens", "FLOPs", "workers", "CPUs"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for task in tasks:
        stages = [stage for job in task.jobs for stage in job.stages]
        job = task.jobs[-1]
        tokens = sum(job.num_tokens(stage) for stage in stages)
        cells = (len(stages), stages[-1].num_blocks, f"{tokens:,}", f"{sum(job.stage_weights):.2e}")
        table.add_row(task.name, *map(str, cells), str(job.resources.num_workers), f"{task.needs[0]:g}")
    return table
