"""Records of trials: what is written is read, in order, and the best is the lowest that finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtx.exceptions import StoreError
from growtx.storage import Storage
from growtx.store.trials import TrialEvaluation, TrialRecord, best_trial, read_trials, trial_dir, write_trial


def record(number: int, **changes: Any) -> TrialRecord:
    return TrialRecord(**{"stage": 1, "stage_name": "depth-1", "number": number, "values": {"a": 1e-3}, **changes})


def test_records_come_back_in_the_order_of_their_stages_and_numbers(tmp_path: Path) -> None:
    run = Storage(tmp_path)
    written = [
        record(11),
        record(2, evaluations=[TrialEvaluation(fraction=0.5, bits_per_byte=2.0)]),
        record(0, stage=2, state="failed", error="why"),
    ]
    for one in written:
        write_trial(run, one)
    assert read_trials(run) == [written[1], written[0], written[2]]
    assert read_trials(run, stage=2) == [written[2]] and read_trials(run, stage=3) == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    run = Storage(tmp_path)
    run.write_text(f"{trial_dir(1, 4)}/trial.json", '{"stage": 1}')
    with pytest.raises(StoreError, match=r"stage-01/004/trial.json is damaged"):
        read_trials(run)


def test_the_best_trial_finished() -> None:
    records = [
        record(0, state="finished", bits_per_byte=2.0),
        record(1, state="stopped", bits_per_byte=1.0),
        record(2, state="finished", bits_per_byte=1.5),
        record(3, state="finished", bits_per_byte=1.5),
        record(4, state="failed"),
    ]
    best = best_trial(records)
    assert best is not None and best.number == 2
    assert best_trial(records[1:2]) is None
