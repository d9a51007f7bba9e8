"""Specialists small enough for seconds, whose stages are finalized as training would, without training or a cluster."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from growtx.config import build_config
from growtx.run.pool import PoolResult, TrainTask
from growtx.specialists import additions, driver
from growtx.specialists.config import SpecialistsConfig
from growtx.store.blobs import BlobStore
from growtx.store.manifest import latest_manifest
from growtx.train.job import TrainJob
from tests import tiny
from tests.run.configs import tree, write_corpus

MERGE = {"rules": ["mean"], "num_windows": 4, "fit_windows": 3, "fit_steps": 2}


def config(directory: Path, **changes: Any) -> SpecialistsConfig:
    """Two specialists on binary codes of 32 dimensions: one text each, of which one is longer."""
    members = []
    for name, num_documents in (("one", 60), ("two", 90)):
        (directory / name).mkdir(exist_ok=True)
        sources = [{"name": name, "files": write_corpus(directory / name, num_documents)}]
        members.append({"name": name, "data": {"sources": sources, "validation_fraction": 0.2}})
    shared = {key: value for key, value in tree("").items() if key != "data"}
    return build_config(SpecialistsConfig, {**shared, "specialists": members, "merge": MERGE, **changes})


def trained(job: TrainJob) -> None:
    """Finalize every stage of a job as training would, without training."""
    store = BlobStore(job.run_dir)
    for stage in job.stages:
        before = latest_manifest(store.storage)
        if before is None or before.index < stage.index:
            tiny.write_stage(store, stage, job.model_at(stage.num_blocks), job.substrate.blob, before)


@pytest.fixture
def without_cluster(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`train_concurrently` finalizes at once and remembers which runs it trained; no Ray, no figures."""
    names: list[str] = []

    def together(tasks: list[TrainTask], **_: Any) -> PoolResult:
        for task in tasks:
            if not task.is_finished:
                names.append(task.name)
                for job in task.jobs:
                    trained(job)
        return PoolResult()

    class Connected:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(driver, "train_concurrently", together)
    for module in (driver, additions):
        monkeypatch.setattr(module, "connected", Connected)
        monkeypatch.setattr(module, "check_cluster", lambda resources: None)
    monkeypatch.setattr("growtx.run.grow.write_report", lambda root: f"{root}/report.html")
    monkeypatch.setattr("growtx.merge.report.save", lambda draw, storage, name: "")
    return names


def quiet() -> Console:
    return Console(file=io.StringIO())
