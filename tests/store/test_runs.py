"""The state of runs, judged from their files on two kinds of file system."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from growtx.exceptions import StoreError
from growtx.storage import Storage
from growtx.store.runs import list_runs

LATER = timedelta(hours=1)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4()}"


def make_run(root: str, name: str, state: str | None = None, *, rows: int = 0, num_finished_stages: int = 0) -> Storage:
    run = Storage(f"{root}/{name}")
    run.write_text("run.yaml", "name: demo\n")
    if state:
        status = {"state": state, "updated": "2026-01-01T00:00:00+00:00", "job_id": "raysubmit_1", "num_stages": 4}
        run.write_text("status.json", json.dumps(status))
    for step in range(rows):
        row = {"step": step, "num_tokens": 100 * step} | ({"eval/bits_per_byte": 2.5} if step == 1 else {})
        run.append_text("metrics.jsonl", json.dumps(row) + "\n")
    for index in range(1, num_finished_stages + 1):
        run.write_text(f"manifests/{index:02d}-grow.json", "{}")
    return run


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [("finished", "finished"), ("failed", "failed"), ("stopped", "interrupted"), ("running", "running")],
)
def test_a_run_is_in_the_state_that_it_recorded(root: str, recorded: str, expected: str) -> None:
    make_run(root, "demo", recorded, rows=3, num_finished_stages=2)
    (run,) = list_runs(root)
    assert (run.name, run.state) == ("demo", expected)
    assert (run.num_finished_stages, run.num_stages, run.job_id) == (2, 4, "raysubmit_1")
    assert (run.num_tokens, run.bits_per_byte) == (200, 2.5)


def test_a_running_run_that_fell_silent_was_interrupted(root: str) -> None:
    make_run(root, "killed", "running", rows=1)
    make_run(root, "done", "finished", rows=1)
    states = {run.name: run.state for run in list_runs(root, now=datetime.now(UTC) + LATER)}
    assert states == {"killed": "interrupted", "done": "finished"}


def test_a_run_killed_before_its_first_status_is_listed_too(root: str) -> None:
    make_run(root, "young")
    assert [run.state for run in list_runs(root)] == ["running"]
    assert [run.state for run in list_runs(root, now=datetime.now(UTC) + LATER)] == ["interrupted"]


def test_lines_cut_off_by_a_crash_do_not_hide_the_run(root: str) -> None:
    run = make_run(root, "crashed", rows=2)
    run.append_text("metrics.jsonl", '{"step": 2, "num_tok')
    run.write_text("status.json", '{"state": "fini')
    (summary,) = list_runs(root)
    assert (summary.num_tokens, summary.num_stages, summary.state) == (100, None, "running")


def test_only_run_directories_are_listed_and_a_run_lists_itself(root: str) -> None:
    make_run(root, "one", "finished")
    make_run(root, "two", "failed")
    Storage(f"{root}/notes").write_text("notes.txt", "no run")
    assert {run.name for run in list_runs(root)} == {"one", "two"}
    assert [run.name for run in list_runs(f"{root}/one")] == ["one"]


def test_a_missing_directory_is_an_error_that_names_it(tmp_path) -> None:
    with pytest.raises(StoreError, match="there is no such directory"):
        list_runs(str(tmp_path / "nothing"))
