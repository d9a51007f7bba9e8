"""The function that Ray Train runs on every worker: the stages of one job or of many, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from growtx.compat.torch import compiler_errors
from growtx.exceptions import GrowtxError
from growtx.growth.plan import Stage
from growtx.storage import Storage
from growtx.store.manifest import Manifest, list_manifests, read_lineage, stage_index
from growtx.train.claims import RunClaims
from growtx.train.distributed import on_rank_zero
from growtx.train.job import TrainJob
from growtx.train.progress import RunPosition, StopRequested
from growtx.train.stage_run import StageRun
from growtx.train.worker_context import WorkerContext


@dataclass(frozen=True)
class GroupOutcome:
    """How a worker group ended: whether it was asked to stop, and the runs (by directory) that failed."""

    stopped: bool
    failed: Mapping[str, GrowtxError] = field(default_factory=dict)


def train_loop_per_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train every stage of the jobs that has no manifest yet.

    A failure in one run ends that run alone: jobs of other run directories continue.

    Returns:
        `{"stopped": bool, "failed": {run_dir: GrowtxError}}`: a user-facing error is an outcome, not a
        crash, or Ray would start the workers again for it.
    """
    jobs = [TrainJob.model_validate(job) for job in config["jobs"]]
    claims: RunClaims | None = config["claims"]
    failed: dict[str, GrowtxError] = {}
    for job, run_position in zip(jobs, _run_positions(jobs), strict=True):
        if job.run_dir in failed or not (claims is None or on_rank_zero(partial(claims.claim, job.run_dir))):
            continue
        try:
            if train_job(job, config["progress_actor"], run_position):
                return {"stopped": True, "failed": failed}
        except GrowtxError as error:
            failed[job.run_dir] = error
    return {"stopped": False, "failed": failed}


def _run_positions(jobs: list[TrainJob]) -> list[RunPosition]:
    """Where each job stands among the runs of this worker group."""
    order: Mapping[str, int] = {run_dir: at for at, run_dir in enumerate(dict.fromkeys(job.run_dir for job in jobs))}
    return [RunPosition(job.run_dir.rsplit("/", 1)[-1], order[job.run_dir], len(order)) for job in jobs]


def train_job(job: TrainJob, progress_actor: Any, run_position: RunPosition) -> bool:
    """Train a job to its end; returns whether a stop was asked for."""
    context: WorkerContext | None = None
    is_finished = False
    try:
        for stage in job.stages:
            finished, parent = on_rank_zero(partial(_manifests_at, job, stage.index))
            if finished:  # by an earlier attempt of this worker group
                continue
            context = context or WorkerContext(job, progress_actor, run_position)
            try:
                _run_stage(context, stage, parent)
            except StopRequested:
                return True
            finally:
                context.end_stage()
        is_finished = True
    finally:
        if context is not None:
            context.close(finished=is_finished)
    return False


def _run_stage(context: WorkerContext, stage: Stage, parent: Manifest | None) -> None:
    run = StageRun(context, stage, parent)
    try:
        with compiler_errors():
            run.finalize(run.train())
    finally:
        run.close()


def _manifests_at(job: TrainJob, index: int) -> tuple[bool, Manifest | None]:
    """Whether stage `index` is finished, and the manifest of the stage before it."""
    own, parents = Storage(job.run_dir), Storage(job.store_dir)
    is_finished = any(stage_index(name) == index for name in list_manifests(own))
    # By the chain, not by number: a repeated stage leaves a branch, and the plan goes on from the newest.
    return is_finished, next((before for before in read_lineage(parents) if before.index == index - 1), None)
