"""The driver's side: one Ray Train run for consecutive stages, on the resources the configuration asks for."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from growtx.exceptions import GrowtxError, TrainingError
from growtx.store.storage import Storage
from growtx.train.checkpoints import CHECKPOINTS_DIR
from growtx.train.job import TrainJob
from growtx.train.worker import train_stages

# Ray's controller looks at its workers every 2 s by default, which every report then waits for.
_RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@dataclass(frozen=True)
class Outcome:
    """How a group of stages ended."""

    stopped: bool


def train_group(job: TrainJob, board: Any = None) -> Outcome:
    """Train the stages of a job on one worker group, replacing workers that are lost.

    Raises:
        GrowtxError: what the workers report, or TrainingError when Ray gives up.
    """
    os.environ.update({key: value for key, value in _RAY_TRAIN_ENVIRONMENT.items() if key not in os.environ})
    resources = job.resources
    storage = Storage(job.run_dir)
    trainer = TorchTrainer(
        train_stages,
        train_loop_config={"job": job.model_dump(mode="json"), "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",  # a name is never used twice: Ray would resume from it by itself
            storage_path=storage.path(f"{CHECKPOINTS_DIR}/ray"),  # its own bookkeeping; ours lies beside it
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explain(error) from error
    outcome: dict[str, Any] = result.return_value or {}
    if isinstance(outcome.get("error"), GrowtxError):
        raise outcome["error"]
    return Outcome(stopped=bool(outcome.get("stopped")))


def _explain(error: Exception) -> TrainingError:
    """The first line of what went wrong on the workers, without Ray's layers around it."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    cause: BaseException = next(iter(failures.values()), error)
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    detail = lines[-1] if lines else type(cause).__name__
    return TrainingError(
        f"training failed on {len(failures) or 'all'} of the workers: {type(cause).__name__}: {detail}",
        "Finished stages are kept; run the same command with --resume, and see Ray's logs for the whole traceback",
    )
