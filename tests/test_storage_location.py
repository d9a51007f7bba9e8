"""Where relative run directories lie, on a laptop, on a cluster and inside a Ray job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from growtx.compat.ray import submission_id
from growtx.storage import resolve_address

JOB = json.dumps({"metadata": {"job_submission_id": "mine"}})


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GROWTX_STORAGE", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)


def test_relative_run_directories_lie_in_the_storage_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWTX_STORAGE", "s3://bucket/growtx/")
    assert resolve_address("runs/first") == "s3://bucket/growtx/runs/first"
    assert resolve_address("/mnt/runs/first") == "/mnt/runs/first"
    assert resolve_address("gs://other/first") == "gs://other/first"
    monkeypatch.setenv("GROWTX_STORAGE", "/shared/")
    assert resolve_address("./first") == "/shared/first"


def test_without_a_cluster_they_lie_where_the_command_runs(tmp_path: Path) -> None:
    assert resolve_address("runs/first") == f"{tmp_path}/runs/first"
    assert submission_id() is None


def test_a_job_does_not_keep_runs_in_the_copy_that_ray_deletes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", JOB)
    monkeypatch.setenv("HOME", "/home/ray")
    assert resolve_address("runs/first") == "/home/ray/growtx/runs/first"
    assert submission_id() == "mine"


def test_a_variable_that_is_no_json_is_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{")
    assert submission_id() is None
