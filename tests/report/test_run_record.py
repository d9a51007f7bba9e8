from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from growtx.exceptions import StoreError
from growtx.report.run_record import read_run

MakeRun = Callable[..., Path]


def test_a_torn_last_line_does_not_hide_the_rows_before_it(run_dir: Path) -> None:
    whole = len(read_run(str(run_dir)).stages[3].rows)
    with (run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 9, "sta')
    assert len(read_run(str(run_dir)).stages[3].rows) == whole


def test_what_was_not_recorded_is_listed_not_invented(make_run: MakeRun) -> None:
    run = read_run(str(make_run(changes={2: {"samples": (), "metrics": {}}})))
    assert run.missing == ["text samples of stage 2", "time in seconds of stage 2"]
    assert run.stages[1].metric("seconds") is None


def test_stages_meet_on_the_token_axis(run_dir: Path) -> None:
    run = read_run(str(run_dir))
    assert [run.stage_start_tokens(stage) for stage in run.stages[1:]] == [s.end_tokens for s in run.stages[:-1]]


def test_held_out_values_come_from_the_manifest_where_no_metrics_are(run_dir: Path) -> None:
    recorded = read_run(str(run_dir)).stages[1].evaluated("bits_per_byte", "end")
    (run_dir / "metrics.jsonl").unlink()
    assert read_run(str(run_dir)).stages[1].evaluated("bits_per_byte", "end") == pytest.approx(recorded)


@pytest.mark.parametrize("make", [False, True])
def test_a_directory_without_a_run_is_one_sentence(tmp_path: Path, make: bool) -> None:
    path = tmp_path / "nothing"
    if make:
        path.mkdir()
    with pytest.raises(StoreError, match="nothing"):
        read_run(str(path))
