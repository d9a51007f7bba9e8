"""The function that Ray Train runs on every worker: the stages of a job, one after the other."""

from __future__ import annotations

from functools import partial
from typing import Any

from growtx.exceptions import GrowtxError
from growtx.store.manifest import Manifest, list_manifests, read_manifest, stage_index
from growtx.store.storage import Storage
from growtx.train.distributed import on_rank_zero
from growtx.train.job import TrainJob
from growtx.train.sealing import seal
from growtx.train.stage_run import StageRun, StopRequested
from growtx.train.worker_context import WorkerContext


def train_stages(config: dict[str, Any]) -> dict[str, Any]:
    """Train every stage of the job that has no manifest yet.

    Returns:
        `{"stopped": bool}`, or `{"error": GrowtxError}`: an error that a user can understand is an outcome, not a
        crash, or Ray would start the workers again for it.
    """
    try:
        return {"stopped": _train(TrainJob.model_validate(config["job"]), config["board"])}
    except GrowtxError as error:
        return {"error": error}


def _train(job: TrainJob, board: Any) -> bool:
    context = WorkerContext(job, board)
    for stage in job.stages:
        finished, parent = on_rank_zero(partial(_manifests_at, job.run_dir, stage.index))
        if finished:  # by an earlier attempt of this worker group
            continue
        run = StageRun(context, stage, parent)
        try:
            ended_by = run.train()
            seal(run, ended_by)
        except StopRequested:
            return True
        finally:
            run.engine.close()
    return False


def _manifests_at(run_dir: str, index: int) -> tuple[bool, Manifest | None]:
    """Whether stage `index` is finished, and the manifest of the stage before it."""
    storage = Storage(run_dir)
    by_index = {stage_index(name): name for name in list_manifests(storage)}
    parent = read_manifest(storage, by_index[index - 1]) if index - 1 in by_index else None
    return index in by_index, parent
