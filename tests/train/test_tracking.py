"""What goes to Weights & Biases and MLflow: with the real libraries where they are installed, without any server."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from growtx.config import build_config
from growtx.exceptions import ConfigError, TrainingError
from growtx.storage import Storage
from growtx.train import tracking
from growtx.train.cluster import runtime_env
from growtx.train.settings import ResourcesConfig
from growtx.train.tracking import TRACKING_FILE, Trackers, TrackingConfig, WandbConfig, WandbRun

WANDB = {"wandb": {"project": "growtx-tests", "mode": "offline"}}


def row(tokens: int, loss: float) -> dict[str, Any]:
    return {"num_tokens": tokens, "stage_name": "depth-1", "num_blocks": 1, "train/loss": loss, "eval/when": "start"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    run = Storage(str(tmp_path / "run"))
    run.write_text(
        "run.yaml", "name: run\nmodel: {hidden_size: 64}\nplan: {stages: null}\nprovenance: {host: secret}\n"
    )
    return run


class Service:
    """Remembers what it is told; may fail."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.tokens: list[int] = []
        self.finished: bool | None = None
        self._fails_at = fails_at

    def add(self, row: Any) -> None:
        if row["num_tokens"] == self._fails_at:
            raise ConnectionError("no route\nto host")
        self.tokens.append(row["num_tokens"])

    def close(self, *, finished: bool) -> None:
        self.finished = finished


def test_nothing_configured_leaves_tensorboard_alone(storage: Storage) -> None:
    trackers = Trackers(TrackingConfig(), storage)
    trackers.add(row(100, 2.0))
    trackers.close(finished=True)
    assert storage.list_files("tensorboard")
    assert not storage.exists(TRACKING_FILE)


@pytest.mark.parametrize(("name", "block"), [("wandb", {"project": "p"}), ("mlflow", {"tracking_uri": "http://x"})])
def test_a_package_that_is_missing_is_one_sentence_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, block: dict[str, str]
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"needs the package {name}.*not installed.*pip install {name}"):
        build_config(TrackingConfig, {name: block}).check_installed()
    TrackingConfig().check_installed()


def test_a_service_that_refuses_to_begin_ends_the_run_before_its_first_step() -> None:
    def refuse() -> Service:
        raise ValueError("invalid\n key.")

    with pytest.raises(TrainingError, match=r"tracking.wandb cannot start \(invalid key\)"):
        tracking._opened("wandb", refuse)


def test_a_service_that_fails_later_costs_a_warning(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    trackers = Trackers(TrackingConfig(), storage)
    trackers._services = {"mlflow": Service(fails_at=200), "wandb": (good := Service())}
    with caplog.at_level(logging.WARNING):
        for tokens in (100, 200, 300):
            trackers.add(row(tokens, 1.0))
    assert list(trackers._services) == ["wandb"], "and is asked no more"
    trackers.close(finished=False)
    assert [record.getMessage() for record in caplog.records] == [
        "tracking.mlflow receives no more metrics: no route to host"
    ]
    assert (good.tokens, good.finished) == ([100, 200, 300], False)


def test_mlflow_has_one_run_for_a_run_directory_that_was_resumed(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra growtx[mlflow] is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = (tmp_path / "mlruns").as_uri()
    config = build_config(TrackingConfig, {"mlflow": {"tracking_uri": place, "experiment": "ours"}})
    for tokens, finished in ((100, False), (200, True)):
        trackers = Trackers(config, storage)
        trackers.add(row(tokens, tokens / 100))
        trackers.close(finished=finished)
    client = MlflowClient(place)
    (run,) = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert history == [(100, 1.0), (200, 2.0)]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"name": "run", "model.hidden_size": "64"}


def test_weights_and_biases_keeps_the_id_of_a_resumed_run(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra growtx[wandb] is not installed")
    config = build_config(TrackingConfig, WANDB)
    ids = set()
    for tokens in (100, 200):
        trackers = Trackers(config, storage)
        trackers.add(row(tokens, 1.0))
        trackers.close(finished=True)
        ids.add(storage.read_text(TRACKING_FILE))
    assert len(ids) == 1
    assert len([name for name in storage.list_files("wandb") if name.endswith(".wandb")]) == 2


@pytest.mark.parametrize(
    ("configured", "environment", "expected"),
    [
        (None, "offline", "offline"),
        (None, None, "online"),
        ("offline", "online", "offline"),
        ("online", "offline", "online"),
    ],
)
def test_weights_and_biases_runs_as_the_environment_says_unless_it_is_configured(
    configured: str | None, environment: str | None, expected: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in that, like the real one, lets an argument count more than the variable."""
    started: list[str] = []

    def init(mode: str | None = None, **_: Any) -> Any:
        started.append(mode or os.environ.get("WANDB_MODE") or "online")
        return SimpleNamespace(id="id", define_metric=lambda *_, **__: None)

    stand_in = SimpleNamespace(init=init, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    WandbRun(build_config(WandbConfig, {"project": "p", "mode": configured}), storage)
    assert started == [expected]
    passed_on = runtime_env(ResourcesConfig())["env_vars"]
    assert passed_on.get("WANDB_MODE") == environment, "workers on other nodes have another environment"


def test_a_client_that_names_its_address_gives_no_credential_away() -> None:
    def refuse() -> Service:
        raise ConnectionError("no answer from http://user:s3cr3t@host:5000/api")

    with pytest.raises(TrainingError, match=r"http://user:\*\*\*@host") as caught:
        tracking._opened("mlflow", refuse)
    assert "s3cr3t" not in str(caught.value)
