"""The driver's side: one Ray Train run for all stages and jobs that share resources, since every start costs 20 s."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any

import ray.train

from growtx.compat.ray import (
    ALONE_ENVIRONMENT,
    TRAIN_ENVIRONMENT,
    is_startup_timeout,
    names_a_cluster,
    set_environment,
    torch_trainer,
)
from growtx.exceptions import TrainingError
from growtx.storage import Storage
from growtx.store.manifest import list_manifests
from growtx.train.checkpoints import CHECKPOINTS_DIR, INFO_FILE
from growtx.train.claims import RunClaims
from growtx.train.cluster import check_cluster, first_sentence
from growtx.train.job import TrainJob
from growtx.train.settings import ResourcesConfig
from growtx.train.worker import GroupOutcome, train_loop_per_worker

logger = logging.getLogger(__name__)


def fit_worker_group(
    jobs: Sequence[TrainJob], progress_actor: Any = None, claims: RunClaims | None = None
) -> GroupOutcome:
    """Train jobs that share resources on one worker group, replacing workers that are lost.

    A run of weeks loses many workers. What ends it is `max_failures` losses in a row between which nothing was saved,
    so they are counted here: Ray counts those of the whole run.

    Args:
        jobs: in order; a run directory whose job failed is skipped from then on.
        claims: decides who takes which run, if several groups are given the same jobs.

    Raises:
        TrainingError: Ray gives up.
    """
    set_environment(TRAIN_ENVIRONMENT if names_a_cluster() else TRAIN_ENVIRONMENT | ALONE_ENVIRONMENT)
    resources = jobs[0].resources
    assert all(job.resources == resources for job in jobs)
    num_failures, saved = 0, _saved(jobs)
    while True:
        try:
            result = _torch_trainer(jobs, progress_actor, claims).fit()
            break
        except ray.train.TrainingFailedError as error:
            before, saved = saved, _saved(jobs)
            if saved != before:
                num_failures = 0
            failure = getattr(error, "controller_failure", None)
            num_failures += failure is None or not is_startup_timeout(failure)
            if num_failures > resources.max_failures:
                raise _explain(error) from error
            logger.warning("%s; starting again (%s)", _explain(error).problem, _left(num_failures, resources))
            check_cluster(resources)  # nodes lost for good end the run; it keeps waiting for busy ones
    outcome: dict[str, Any] = result.return_value or {}
    return GroupOutcome(stopped=bool(outcome.get("stopped")), failed=outcome.get("failed", {}))


def _saved(jobs: Sequence[TrainJob]) -> list[tuple[list[str], list[str]]]:
    """The finished stages and the checkpoints of every job."""
    runs = [job.run_storage for job in jobs]
    return [(list_manifests(run), run.list_files(CHECKPOINTS_DIR, suffix=INFO_FILE)) for run in runs]


def _left(num_failures: int, resources: ResourcesConfig) -> str:
    return f"time {num_failures} of {resources.max_failures} without progress" if num_failures else "waiting for room"


def _torch_trainer(jobs: Sequence[TrainJob], progress_actor: Any, claims: RunClaims | None) -> Any:
    resources, storage = jobs[0].resources, Storage(jobs[0].run_dir)
    return torch_trainer(
        train_loop_per_worker,
        train_loop_config={
            "jobs": [job.model_dump(mode="json") for job in jobs],
            "progress_actor": progress_actor,
            "claims": claims,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(
                resources.num_workers
                if resources.min_workers is None
                else (resources.min_workers, resources.num_workers)
            ),
            elastic_resize_monitor_interval_s=resources.resize_seconds,
            use_gpu=resources.use_gpu,
            accelerator_type=resources.accelerator_type,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",  # a name is never used twice: Ray would resume from it by itself
            storage_path=storage.path(f"{CHECKPOINTS_DIR}/ray"),  # its own bookkeeping; ours lies beside it
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),  # we count them
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _explain(error: Exception) -> TrainingError:
    """What went wrong on the workers, in a sentence without Ray's layers around it."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    cause: BaseException = next(iter(failures.values()), getattr(error, "controller_failure", error))
    while cause.__cause__ is not None:
        cause = cause.__cause__
    where = f"on {len(failures)} of the workers" if failures else "in the process that directs the workers"
    return TrainingError(
        f"training failed {where}: {type(cause).__name__}: {first_sentence(cause)}",
        "Finished stages are kept; run the same command with --resume, and see Ray's logs for the whole traceback",
    )
