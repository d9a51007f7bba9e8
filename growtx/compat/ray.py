"""What Ray's Train, Tune, Serve and jobs do not offer but growtx needs: every private part that is touched.

Ray is imported by the functions that need it: `growtx.storage` asks for the job's id without loading it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

SEEN = "2.60.0"

# Variables that Ray reads and mostly does not document; what a user has set already stays (`set_environment`).

CLUSTER_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # CUDA_VISIBLE_DEVICES stays where no GPU is asked for
}
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # the controller polls every 2 s, and every report would wait for it
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what workers print would appear twice
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nobody reads Ray's own gauges of the controller and the workers
}
ALONE_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a Ray that ends with this process has no nodes that could be taken
}
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a sweep keeps its own records of trials
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's would end trials without a checkpoint
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # failures are in the table of trials, in a sentence each
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # no advice
    "RAY_AIR_NEW_OUTPUT": "0",  # the older reporter, which takes `verbose=0`
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths stay relative to the working directory
}
SERVE_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 lets every other program of the machine go first
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",  # a busy machine is slow to start processes
}
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job server for entrypoints; it is really called that
_ADVICE = r"PYTHON worker processes have been started"
_SLOW_START = "timed out during startup"
_DRAIN_POLL_SECONDS = 0.2

TOUCHED = (
    ('ray._private.accelerators.accelerator:"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"', "leave CUDA_VISIBLE_DEVICES alone"),
    ('ray.train.v2._internal.constants:"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"', "get reports of workers without a delay"),
    ('ray.train.v2._internal.constants:"RAY_TRAIN_ENABLE_PRINT_PATCH"', "print once what workers print"),
    ('ray.train.v2._internal.constants:"RAY_TRAIN_METRICS_ENABLED"', "leave out gauges that nobody reads"),
    ('ray.train.v2._internal.constants:"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"', "start fewer processes"),
    ("ray.train.torch:TorchTrainer._create_default_callbacks", "start fewer processes"),
    ("ray.train.v2._internal.callbacks.datasets:DatasetsCallback", "start fewer processes"),
    (
        "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback",
        "start fewer processes",
    ),
    ('ray.tune.constants:"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"', "leave out Tune's own records of trials"),
    ('ray.tune.constants:"TUNE_DISABLE_SIGINT_HANDLER"', "save checkpoints of trials at Ctrl-C"),
    ('ray.tune.constants:"TUNE_PRINT_ALL_TRIAL_ERRORS"', "show a failed trial in one sentence"),
    ('ray.tune.constants:"TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"', "silence a warning"),
    ('ray.tune.experimental.output:"RAY_AIR_NEW_OUTPUT"', "silence Tune's reporter"),
    ("ray.train.constants:RAY_CHDIR_TO_TRIAL_DIR", "stay in the working directory"),
    ('ray._private.ray_constants:"RAY_worker_niceness"', "give replicas their share of a busy machine"),
    ('ray.serve._private.constants:"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"', "wait for Serve on a busy machine"),
    ("ray._private.runtime_env.constants:RAY_JOB_CONFIG_JSON_ENV_VAR", "know the id of the job it runs in"),
    ("ray.train.v2._internal.exceptions:WorkerGroupStartupTimeoutError", "wait for a busy cluster"),
    ("ray.train.v2._internal.execution.context:get_train_context", "hear that a node will go, without waiting for all"),
    ("ray.train.torch:TorchTrainer._register_sigint_handler", "save a checkpoint at Ctrl-C"),
    ('ray._private.node:"timed out during startup"', "start Ray again on a busy machine"),
    ("ray._private.ray_logging:stdout_deduplicator.skip_re", "leave out its advice between lines of progress"),
    ('ray.serve._private.common:"unique_id: str"', "name a replica in its metrics"),
    ('ray.serve.scripts:"serve.shutdown()"', "let running answers end at Ctrl-C of `serve run`"),
    ('ray.serve.api:"_blocking: bool = True"', "delete several applications at the same time"),
)


def set_environment(variables: Mapping[str, str]) -> None:
    """Set variables for Ray, except those that are set already."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def names_a_cluster() -> bool:
    """Whether the environment names a cluster; else a command starts a Ray that ends with it."""
    return bool(os.environ.get("RAY_ADDRESS"))


def submission_id() -> str | None:
    """The id that `ray job submit` printed and `ray job stop` takes; None outside of a job."""
    try:
        config = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
    except ValueError:
        return None
    return config.get("metadata", {}).get("job_submission_id")  # type: ignore[no-any-return]


def is_startup_timeout(failure: Exception) -> bool:
    """Whether a worker group only found no room in time: the cluster is busy, and nothing is broken."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(failure, WorkerGroupStartupTimeoutError)


def will_be_preempted() -> bool:
    """Whether this training worker was told that a node of its group will be taken away.

    Ray's own function asks all workers at once, and waits for them at every step; ours agree on it with other flags.
    """
    if not is_connected():
        return False
    from ray.train.v2._internal.execution.context import get_train_context

    try:
        return get_train_context().preemption_context.preemption_info is not None
    except RuntimeError:  # not a worker of Ray Train
        return False


def torch_trainer(*args: Any, **kwargs: Any) -> TorchTrainer:
    """Ray's `TorchTrainer` without its handler of Ctrl-C, and without processes that have nothing to do.

    The handler would abort without a checkpoint; `growtx.run.grow.stop_on_signals` asks for one instead. The processes
    take two seconds of a CPU each to start: what splits data sets, of which there are none; and on a Ray that ends with
    this process, what tidies up after a controller that dies before its cluster does.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    idle = (DatasetsCallback,) if names_a_cluster() else (DatasetsCallback, PlacementGroupCleanerCallback)

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            pass

        def _create_default_callbacks(self) -> list[Any]:
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, idle)]

    return Trainer(*args, **kwargs)


@dataclass(frozen=True)
class PastTrial:
    """What Tune's schedulers need of a trial: ASHA reads the id, the median rule takes it as a key."""

    trial_id: str


def replay(scheduler: Any, name: str, reports: Iterable[dict[str, Any]], last: dict[str, Any] | None) -> None:
    """Tell a scheduler what a trial of an earlier process reported, without asking it to decide.

    Schedulers can only be told by Tune's loop, which calls these methods with itself and a trial. The median rule
    decides once and for all at `on_trial_result`, and counts what it is told at `on_trial_complete`.

    Args:
        last: the report with which the trial finished; None if it did not.
    """
    from ray.tune.schedulers import MedianStoppingRule

    trial = PastTrial(name)
    scheduler.on_trial_add(None, trial)
    tell = scheduler.on_trial_complete if isinstance(scheduler, MedianStoppingRule) else scheduler.on_trial_result
    for report in reports:
        tell(None, trial, report)
    if last is not None:
        scheduler.on_trial_complete(None, trial, last)


def is_slow_start(error: Exception) -> bool:
    """Whether Ray's node needed more than the 30 s it gives itself; there is no class for it."""
    return _SLOW_START in str(error)


def is_connected() -> bool:
    """Whether this process is connected to Ray, which may not be installed."""
    module = sys.modules.get("ray")
    return module is not None and hasattr(module, "is_initialized") and bool(module.is_initialized())


def ray_errors(name: str = "RayError") -> tuple[type[BaseException], ...]:
    """What Ray may raise, to be caught; nothing where it is not loaded."""
    module = sys.modules.get("ray")
    return () if module is None else (getattr(module.exceptions, name),)


def metric_tag(text: str) -> str:
    """A tag of a metric: Ray encodes it as ASCII, so what is not is written as in an address (%E6%97%A5)."""
    return quote(text, safe="".join(map(chr, range(0x20, 0x7F))).replace("%", ""))


def silence_driver_warnings() -> None:
    """Leave out advice that Ray prints between our lines, about processes that start as they should.

    It prints it even where it shall print nothing of its processes; what a user wants to skip is kept.
    """
    from ray._private.ray_logging import stdout_deduplicator

    known = stdout_deduplicator.skip_re
    if known is None or _ADVICE not in known.pattern:
        stdout_deduplicator.skip_re = re.compile(_ADVICE if known is None else f"{known.pattern}|{_ADVICE}")


def replica_name() -> str:
    """What distinguishes this replica of a Ray Serve deployment from the others; its id has a private class."""
    from ray import serve

    return serve.get_replica_context().replica_id.unique_id  # type: ignore[no-any-return]


def drain_at_shutdown(seconds: float, say: Callable[[str], None]) -> None:
    """Let `ray.serve.shutdown()` of this process wait until running answers have ended, or for KeyboardInterrupt.

    Ray's own ends the proxies at once, and with them every stream. `serve run` calls it at Ctrl-C and has no hook, but
    looks it up in its module then. A deleted application, in contrast, drains as at a redeployment.

    Args:
        seconds: the longest wait; replicas end by themselves after their `graceful_shutdown_timeout_s`.
    """
    from ray import serve

    plain = getattr(serve.shutdown, "without_drain", serve.shutdown)  # an application may be built twice

    @wraps(plain)
    def shutdown(*args: Any, **kwargs: Any) -> None:
        try:
            _drain(seconds, say)
        except KeyboardInterrupt:
            say("stopping at once")
        plain(*args, **kwargs)

    shutdown.without_drain = plain  # type: ignore[attr-defined]
    serve.shutdown = shutdown


def _drain(seconds: float, say: Callable[[str], None]) -> None:
    import ray
    from ray import serve

    if not ray.is_initialized() or not (names := list(serve.status().applications)):
        return
    say(f"stopping: running answers get up to {seconds:g} s to end; Ctrl-C again stops at once")
    for name in names:
        serve.delete(name, _blocking=False)
    deadline = time.monotonic() + seconds
    while serve.status().applications and time.monotonic() < deadline:
        time.sleep(_DRAIN_POLL_SECONDS)
