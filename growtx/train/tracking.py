"""Reporters for the rows of `metrics.jsonl`: TensorBoard always, Weights & Biases and MLflow where configured.

A run directory is one run there too, however often it is resumed: its ids are in `tracking.json`. A service that
stops answering causes a warning, but never stops the training.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, RootModel

from growtx.compat.ray import is_connected, metric_tag
from growtx.config import ConfigModel, parse_record, parse_yaml
from growtx.exceptions import ConfigError, TrainingError
from growtx.redaction import redact_text, redact_tree
from growtx.storage import Storage
from growtx.store.run_records import RUN_FILE

# The newest row of `metrics.jsonl` as Prometheus gauges, for the dashboards in cluster/monitoring.
#
# Ray exports them from the node that they were set on, with the prefix `ray_`. They are for monitoring; the record is
# `metrics.jsonl`.


DESCRIPTIONS = {
    "train/loss": "nats per token, over the steps since the last row",
    "train/learning_rate": "of the active blocks",
    "train/tokens_per_second": "over all workers",
    "train/grad_norm": "before clipping",
    "eval/loss": "nats per token on held-out windows",
    "eval/bits_per_byte": "on held-out windows",
    "stage": "of the plan, from 1",
    "num_blocks": "depth of the model in training",
    "num_tokens": "trained on since the first stage",
    "active_parameters": "parameters that receive gradients",
    "peak_memory_bytes": "of the worker with rank 0",
}


def gauge_name(key: str) -> str:
    """`train/loss` is exported as `ray_growtx_train_loss`."""
    return f"growtx_{key.replace('/', '_')}"


@cache
def _gauges() -> dict[str, Any]:
    """Once per process: a process may train several runs."""
    from ray.util.metrics import Gauge

    return {key: Gauge(gauge_name(key), text, tag_keys=("run",)) for key, text in DESCRIPTIONS.items()}


class TrainingGauges:
    """One gauge per key of a row, labelled with the run directory; keys that a row does not have keep their value."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": metric_tag(run)}

    def update(self, row: Mapping[str, Any]) -> None:
        if not is_connected():
            return  # nobody would export them
        for key, gauge in _gauges().items():
            if row.get(key) is not None:
                gauge.set(float(row[key]), tags=self._tags)


# The rows of `metrics.jsonl` as TensorBoard event files, for monitoring: `tensorboard --logdir RUN/tensorboard`.


TENSORBOARD_DIR = "tensorboard"
_PLAIN = ("num_blocks", "active_parameters", "peak_memory_bytes")  # beside every key such as train/loss


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row that are worth plotting."""
    shown = {key: value for key, value in row.items() if "/" in key or key in _PLAIN}
    return {key: value for key, value in shown.items() if isinstance(value, (int, float))}


class TensorBoardLog:
    """Writes one event file per stage and attempt; the x axis is tokens seen by the run.

    Where the run directory is on a remote file system, the file is uploaded when it is closed.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._directory = storage.path(TENSORBOARD_DIR) if storage.is_local else tempfile.mkdtemp()
        self._uploaded: set[Path] = set()  # a closed file does not change any more
        self._writer: Any = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row. What an earlier attempt wrote after the first row's tokens is hidden."""
        tokens = int(row["num_tokens"])
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._directory, purge_step=tokens + 1, flush_secs=30)  # type: ignore[no-untyped-call]
        for key, value in scalars(row).items():
            self._writer.add_scalar(key, value, tokens)

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        if self._storage.is_local:
            return
        for file in set(Path(self._directory).iterdir()) - self._uploaded:
            self._storage.write_bytes(f"{TENSORBOARD_DIR}/{file.name}", file.read_bytes())
            self._uploaded.add(file)


PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}  # by the module that is imported
TRACKING_FILE = "tracking.json"
_LONGEST_PARAMETER = 500  # characters that every version of MLflow takes
logger = logging.getLogger(__name__)


class WandbConfig(ConfigModel):
    """The block `tracking.wandb`; the key comes from WANDB_API_KEY or `wandb login` on the workers."""

    project: str = Field(min_length=1)
    entity: str | None = Field(None, description="user or team; null: the key's own")
    mode: Literal["online", "offline"] | None = Field(
        None, description="offline: files for `wandb sync`, in the run; null: as WANDB_MODE says, else online"
    )


class MlflowConfig(ConfigModel):
    """The block `tracking.mlflow`; credentials come from MLFLOW_TRACKING_USERNAME, ..._PASSWORD or ..._TOKEN.

    They are masked where they stand in the address (`growtx.redaction`), and a resumed run has to be told them again.
    """

    tracking_uri: str = Field(min_length=1, description="as the workers reach it: http://HOST:5000, databricks, ...")
    experiment: str = Field("growtx", min_length=1)


class TrackingConfig(ConfigModel):
    """The block `tracking`: where metrics go besides `metrics.jsonl` and `tensorboard/`."""

    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None

    def check_installed(self) -> None:
        """Check before anything is prepared.

        Raises:
            ConfigError: naming the package that is missing.
        """
        for name, package in PACKAGES.items():
            if getattr(self, name) is not None and find_spec(name) is None:
                raise ConfigError(
                    f"tracking.{name} needs the package {name}, which is not installed",
                    f"Run pip install {package} on every node, or set tracking.{name}=null",
                )


class TrackingClient(Protocol):
    """A client of a service that rows go to."""

    def add(self, row: Mapping[str, Any]) -> None: ...

    def close(self, *, finished: bool) -> None: ...


class Trackers:
    """All trackers of one run directory, on rank 0.

    Raises:
        TrainingError: a service refuses to start; raised before the first step, not hours into the run.
    """

    def __init__(self, config: TrackingConfig, storage: Storage) -> None:
        config.check_installed()
        self._files = TensorBoardLog(storage)
        self._services: dict[str, TrackingClient] = {}
        if config.wandb is not None:
            self._services["wandb"] = _opened("wandb", partial(WandbRun, config.wandb, storage))
        if config.mlflow is not None:
            self._services["mlflow"] = _opened("mlflow", partial(MlflowRun, config.mlflow, storage))

    def add(self, row: Mapping[str, Any]) -> None:
        """Pass a row on; a service that fails gets no more of them."""
        self._files.add(row)
        for name, service in list(self._services.items()):
            try:
                service.add(row)
            except Exception as error:  # whatever a client library raises when its server is gone
                logger.warning("tracking.%s receives no more metrics: %s", name, _reason(error))
                del self._services[name]

    def end_stage(self) -> None:
        """Store the files in their final place."""
        self._files.close()

    def close(self, *, finished: bool) -> None:
        """Send what is still waiting, and report whether the run finished."""
        self._files.close()
        for name, service in self._services.items():
            try:
                service.close(finished=finished)
            except Exception as error:
                logger.warning("tracking.%s was not closed: %s", name, _reason(error))
        self._services = {}


class WandbRun:
    """One run of Weights & Biases; the x axis is tokens seen."""

    def __init__(self, config: WandbConfig, storage: Storage) -> None:
        import wandb

        known = _recorded_ids(storage)
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=_run_name(storage),
            id=known.get("wandb"),
            resume="allow",
            mode=config.mode,
            dir=storage.root if storage.is_local else tempfile.mkdtemp(),
            config=_recorded_config(storage),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("num_tokens")
        self._run.define_metric("*", step_metric="num_tokens")
        _record_ids(storage, {**known, "wandb": self._run.id})

    def add(self, row: Mapping[str, Any]) -> None:
        self._run.log({**scalars(row), "num_tokens": int(row["num_tokens"])})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MlflowRun:
    """One run of an MLflow experiment; a metric's step is the number of tokens seen."""

    def __init__(self, config: MlflowConfig, storage: Storage) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=config.tracking_uri)
        known = _recorded_ids(storage)
        if "mlflow" in known:
            self._id = known["mlflow"]
            self._client.update_run(self._id, "RUNNING")
            return
        found = self._client.get_experiment_by_name(config.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(config.experiment)
        self._id = self._client.create_run(experiment, run_name=_run_name(storage)).info.run_id
        for key, value in _flat(_recorded_config(storage)):
            self._client.log_param(self._id, key, str(value)[:_LONGEST_PARAMETER])
        _record_ids(storage, {**known, "mlflow": self._id})

    def add(self, row: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now, tokens = int(time.time() * 1000), int(row["num_tokens"])
        self._client.log_batch(self._id, [Metric(key, value, now, tokens) for key, value in scalars(row).items()])

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _opened(name: str, start: Callable[[], TrackingClient]) -> TrackingClient:
    try:
        return start()
    except Exception as error:  # refused keys, unknown hosts, ...: every client has errors of its own
        raise TrainingError(
            f"tracking.{name} cannot start ({_reason(error)})", f"Fix that, or set tracking.{name}=null"
        ) from error


def _reason(error: Exception) -> str:
    return redact_text(" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")


def _run_name(storage: Storage) -> str:
    return storage.root.rstrip("/").rsplit("/", 1)[-1]


def _recorded_config(storage: Storage) -> dict[str, Any]:
    """What `run.yaml` says, without provenance; nothing where the run has none of its own."""
    if not storage.exists(RUN_FILE):
        return {}
    tree = parse_yaml(storage.read_text(RUN_FILE), storage.path(RUN_FILE))
    items = tree.items() if isinstance(tree, dict) else ()
    return {key: redact_tree(value, key) for key, value in items if key not in ("provenance", "tracking")}


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys of the values that are set."""
    if isinstance(tree, Mapping):
        return [pair for key, value in tree.items() for pair in _flat(value, f"{prefix}{key}.")]
    return [] if tree is None else [(prefix[:-1], tree)]


def _recorded_ids(storage: Storage) -> dict[str, str]:
    if not storage.exists(TRACKING_FILE):
        return {}
    remedy = "Delete it: the services then begin a new run each"
    return parse_record(_Ids, storage.read_bytes(TRACKING_FILE), storage.path(TRACKING_FILE), remedy).root


class _Ids(RootModel[dict[str, str]]):
    """What `tracking.json` holds: a run's id in each service."""


def _record_ids(storage: Storage, ids: Mapping[str, str]) -> None:
    storage.write_text(TRACKING_FILE, json.dumps(ids) + "\n")
