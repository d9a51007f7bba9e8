"""`metrics.jsonl`: rows survive crashes, and a resumed stage writes no step twice."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from growtx.storage import Storage
from growtx.store.runs import METRICS_FILE, MetricsLog, read_metrics


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(request.getfixturevalue("object_store").bucket() + "/run")
    return Storage(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4()}/run")


def rows(*positions: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"stage": stage, "step": step, "train/loss": 0.1 * step, "text": "ж\u2028"} for stage, step in positions]


def write(storage: Storage, *positions: tuple[int, int]) -> MetricsLog:
    log = MetricsLog(storage)
    for row in rows(*positions):
        log.append(row)
    log.join()
    return log


def test_rows_are_read_back_in_order(storage: Storage) -> None:
    write(storage, (1, 0), (1, 10), (2, 0))
    assert read_metrics(storage) == rows((1, 0), (1, 10), (2, 0))


def test_a_run_without_metrics_has_no_rows(storage: Storage) -> None:
    assert read_metrics(storage) == []
    MetricsLog(storage).rewind(stage=1, step=-1)
    assert not storage.exists(METRICS_FILE)


def test_rewinding_drops_what_came_after_the_checkpoint_and_keeps_earlier_stages(storage: Storage) -> None:
    log = write(storage, (1, 0), (1, 30), (2, 0), (2, 10), (2, 20), (2, 30))
    log.rewind(stage=2, step=10)
    assert read_metrics(storage) == rows((1, 0), (1, 30), (2, 0), (2, 10))


def test_a_stage_that_starts_anew_drops_all_its_rows(storage: Storage) -> None:
    log = write(storage, (1, 0), (1, 30), (2, 0), (2, 10))
    log.rewind(stage=2, step=-1)
    assert read_metrics(storage) == rows((1, 0), (1, 30))
    log.rewind(stage=1, step=-1)
    assert read_metrics(storage) == []


@pytest.mark.parametrize("torn", ['{"stage": 1, "ste', '{"stage": 1, "text": "', "{", "\x00\x00\x00"])
def test_a_last_line_cut_off_by_a_crash_is_dropped(storage: Storage, torn: str) -> None:
    log = write(storage, (1, 0), (1, 10))
    storage.append_text(METRICS_FILE, torn)
    assert read_metrics(storage) == rows((1, 0), (1, 10))
    log.rewind(stage=1, step=10)
    log.append(rows((1, 20))[0])
    log.flush()
    assert read_metrics(storage) == rows((1, 0), (1, 10), (1, 20))


def test_a_line_cut_inside_a_character_does_not_hide_the_others(storage: Storage) -> None:
    write(storage, (1, 0))
    storage.write_bytes(METRICS_FILE, storage.read_bytes(METRICS_FILE) + '{"text": "ж'.encode()[:-1])
    assert read_metrics(storage) == rows((1, 0))


def test_a_file_with_nothing_but_a_torn_line_does_not_swallow_the_next_row(storage: Storage) -> None:
    storage.write_text(METRICS_FILE, '{"stage": 1')
    log = MetricsLog(storage)
    log.rewind(stage=1, step=-1)
    log.append(rows((1, 0))[0])
    log.flush()
    assert read_metrics(storage) == rows((1, 0))


def test_rewinding_drops_the_score_at_the_end_of_a_stage_that_will_be_finalized_again(storage: Storage) -> None:
    """A stage whose last checkpoint is at its last step may have been scored before it could be stored."""
    log = write(storage, (1, 10))
    for stage, when in ((1, "end"), (2, "start"), (2, "during"), (2, "end")):
        log.append({"stage": stage, "step": 10, "eval/when": when})
    log.rewind(stage=2, step=10)
    kept = [(row["stage"], row["eval/when"]) for row in read_metrics(storage) if "eval/when" in row]
    assert kept == [(1, "end"), (2, "start"), (2, "during")]
