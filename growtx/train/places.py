"""Where a run's workers are: on Ray, or in this very process, for debuggers, profilers and machines without Ray.

Both run the same loop. In one process there is one worker, and nobody who would start it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from growtx.exceptions import ConfigError
from growtx.train.claims import RunClaims
from growtx.train.distributed import alone
from growtx.train.job import TrainJob
from growtx.train.settings import ResourcesConfig
from growtx.train.worker import GroupOutcome, train_loop_per_worker

Fit = Callable[[Sequence[TrainJob], Any, RunClaims | None], GroupOutcome]


@dataclass(frozen=True)
class Place:
    """What a driver needs of it.

    Attributes:
        connected: prepares it for the duration of a `with` block, without claiming what only training needs.
        check: raises a `GrowtxError` where it lacks what is asked for.
        fit: trains jobs that share resources.
    """

    connected: Callable[[ResourcesConfig], AbstractContextManager[None]]
    check: Callable[[ResourcesConfig], None]
    fit: Fit


@contextmanager
def _connected_to_ray(resources: ResourcesConfig) -> Iterator[None]:
    from growtx.train.cluster import connected

    with connected(resources, claim=False):
        yield


def _check_ray(resources: ResourcesConfig) -> None:
    from growtx.train.cluster import check_cluster

    check_cluster(resources)


def _fit_on_ray(jobs: Sequence[TrainJob], progress_actor: Any, claims: RunClaims | None) -> GroupOutcome:
    from growtx.train.stage_trainer import fit_worker_group

    return fit_worker_group(jobs, progress_actor, claims)


@contextmanager
def _connected_here(resources: ResourcesConfig) -> Iterator[None]:
    _check_here(resources)
    with alone(use_gpu=resources.use_gpu):
        yield


def _check_here(resources: ResourcesConfig) -> None:
    if resources.num_workers != 1:
        raise ConfigError(
            f"resources.num_workers={resources.num_workers}: --here is one process, and so one worker",
            "Set resources.num_workers=1, or leave out --here",
        )
    if resources.prefix_job is not None:
        raise ConfigError(
            "resources.prefix_job is a job on Ray, and --here runs without",
            "Set resources.prefix_job=null, or leave out --here",
        )


def _fit_here(jobs: Sequence[TrainJob], progress_actor: Any, claims: RunClaims | None) -> GroupOutcome:
    described = [job.model_dump(mode="json") for job in jobs]
    return GroupOutcome(
        **train_loop_per_worker({"jobs": described, "progress_actor": progress_actor, "claims": claims})
    )


ON_RAY = Place(_connected_to_ray, _check_ray, _fit_on_ray)
IN_THIS_PROCESS = Place(_connected_here, _check_here, _fit_here)
