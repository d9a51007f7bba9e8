"""Event files that TensorBoard itself reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtx.storage import Storage
from growtx.train.tracking import TENSORBOARD_DIR, TensorBoardLog


def row(tokens: int, loss: float) -> dict[str, Any]:
    return {"num_tokens": tokens, "stage_name": "depth-1", "num_blocks": 1, "train/loss": loss, "eval/when": "start"}


def read(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory)).Reload()
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_numbers_of_rows_are_scalars_over_tokens(tmp_path: Path) -> None:
    log = TensorBoardLog(Storage(str(tmp_path)))
    log.add(row(100, 2.5))
    log.add(row(200, 1.5))
    log.close()
    found = read(tmp_path / TENSORBOARD_DIR)
    assert found == {"train/loss": [(100, 2.5), (200, 1.5)], "num_blocks": [(100, 1.0), (200, 1.0)]}


def test_after_a_resumption_what_was_rewound_is_hidden(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for tokens in ((100, 200, 300), (200, 400)):
        log = TensorBoardLog(storage)
        for number in tokens:
            log.add(row(number, float(number)))
        log.close()
    steps = [step for step, _ in read(tmp_path / TENSORBOARD_DIR)["train/loss"]]
    assert 300 not in steps and steps[0] == 100 and steps[-1] == 400


def test_a_stage_without_rows_leaves_no_file(tmp_path: Path) -> None:
    TensorBoardLog(Storage(str(tmp_path))).close()
    assert not (tmp_path / TENSORBOARD_DIR).exists()


def test_on_a_remote_file_system_the_file_arrives_when_closed() -> None:
    storage = Storage("memory://tensorboard-test/run")
    log = TensorBoardLog(storage)
    log.add(row(100, 2.5))
    assert not storage.exists(TENSORBOARD_DIR)
    log.close()
    assert read(Path(storage.download(TENSORBOARD_DIR)))["train/loss"] == [(100, 2.5)]
