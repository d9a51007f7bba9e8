from __future__ import annotations

import json
from pathlib import Path

import pytest

from growtx.evaluate.run_record import read_run
from growtx.exceptions import StoreError
from tests.evaluate.conftest import STEPS_PER_STAGE, stage_rows, write_run


def test_a_step_repeated_after_a_resume_counts_once_as_done_last(run_dir: Path) -> None:
    again = stage_rows(2)[5] | {"train/loss": 1.25}
    with (run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(again) + "\n")
    _, losses = read_run(run_dir).stages[1].series("train/loss")
    assert len(losses) == STEPS_PER_STAGE
    assert losses[4] == 1.25


def test_a_torn_last_line_is_left_out_and_named(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 9, "sta')
    assert any("1 line(s) of metrics.jsonl" in line for line in read_run(run_dir).missing)


def test_absent_keys_are_listed_not_invented(run_dir: Path) -> None:
    path = run_dir / "manifests" / "02-grow-2.json"
    manifest = json.loads(path.read_text())
    del manifest["samples"], manifest["frozen_check"], manifest["total_parameters"]
    path.write_text(json.dumps(manifest))
    run = read_run(run_dir)
    assert "text samples in stage 2" in run.missing
    assert "the check of frozen tensors in stage 2" in run.missing
    assert run.stages[1].total_parameters is None


def test_stages_meet_on_the_token_axis(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert [run.stage_start_tokens(stage) for stage in run.stages[1:]] == [s.end_tokens for s in run.stages[:-1]]


def test_the_budget_is_found_as_a_number_or_in_a_block(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    assert read_run(path).budget == 1_000_000
    (path / "run.yaml").write_text("plan: {budget: {active_parameters: 77}}")
    assert read_run(path).budget == 77


@pytest.mark.parametrize("make", [False, True])
def test_a_directory_without_a_run_is_one_sentence(tmp_path: Path, make: bool) -> None:
    path = tmp_path / "nothing"
    if make:
        path.mkdir()
    with pytest.raises(StoreError, match="nothing"):
        read_run(path)


def test_a_broken_manifest_is_named(run_dir: Path) -> None:
    (run_dir / "manifests" / "01-grow-1.json").write_text("{")
    with pytest.raises(StoreError, match=r"01-grow-1\.json is not valid JSON"):
        read_run(run_dir)
