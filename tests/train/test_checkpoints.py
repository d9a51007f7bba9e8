"""Checkpoints: the newest intact one of this very stage is found, and what is damaged is passed over with a warning."""

from __future__ import annotations

import errno
import json
import logging
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.exceptions import StoreError
from growtx.storage import Storage
from growtx.train.checkpoints import (
    INFO_FILE,
    STATE_FILE,
    CheckpointInfo,
    find_checkpoint,
    read_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3.0)}
MOMENTS = {"exp_avg": {"a.weight": torch.ones(2, 3)}, "exp_avg_sq": {"a.weight": torch.full((2, 3), 2.0)}}


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4()}/run")


@pytest.fixture(autouse=True)
def warnings_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("growtx"), "propagate", True)


def save(run: Storage, step: int, keep: int = 9, **info: Any) -> str:
    fields: dict[str, Any] = {"stage": 2, "stage_fingerprint": "this", "step": step, "seconds": 1.5 * step, **info}
    return write_checkpoint(run, CheckpointInfo(**fields), WEIGHTS, MOMENTS, keep=keep)


def test_a_checkpoint_is_read_back_as_it_was_written(run: Storage) -> None:
    directory = save(run, 10, best_bits_per_byte=1.25, evaluations_without_gain=2, first_bits_per_byte=3.0)
    found = find_checkpoint(run, 2, "this")
    assert found is not None and found[0] == directory
    info = found[1]
    assert (info.step, info.seconds, info.best_bits_per_byte, info.evaluations_without_gain) == (10, 15.0, 1.25, 2)
    weights, moments = read_checkpoint(run, directory, info.state_sha256)
    assert weights.keys() == WEIGHTS.keys() and all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert moments.keys() == MOMENTS.keys()
    assert all(torch.equal(moments[key]["a.weight"], MOMENTS[key]["a.weight"]) for key in MOMENTS)


def test_the_record_of_a_checkpoint_comes_after_its_state_and_before_older_ones_go(
    run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)
    order, write, remove = [], Storage.write_bytes, Storage.remove

    def written(self: Storage, relative: str, data: bytes) -> None:
        order.append(relative.rpartition("/")[2])
        write(self, relative, data)

    def removed(self: Storage, relative: str) -> None:
        order.append(f"without {relative.rpartition('/')[2]}")
        remove(self, relative)

    monkeypatch.setattr(Storage, "write_bytes", written)
    monkeypatch.setattr(Storage, "remove", removed)
    save(run, 20, keep=1)
    assert order == [STATE_FILE, INFO_FILE, "without step-00000010"]


def test_what_one_rank_has_found_intact_another_may_not_read(run: Storage) -> None:
    directory = save(run, 10)
    found = find_checkpoint(run, 2, "this")
    assert found is not None
    path = f"{directory}/{STATE_FILE}"
    data = run.read_bytes(path)
    run.write_bytes(path, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=rf"{STATE_FILE} is damaged"):
        read_checkpoint(run, directory, found[1].state_sha256)


def test_there_may_be_none(run: Storage) -> None:
    assert find_checkpoint(run, 1, "this") is None


def test_the_newest_wins(run: Storage) -> None:
    for step in (10, 20, 30):
        save(run, step)
    found = find_checkpoint(run, 2, "this")
    assert found is not None and found[1].step == 30


def test_checkpoints_of_other_stages_and_other_plans_are_not_touched(run: Storage) -> None:
    save(run, 10)
    save(run, 50, stage=1)
    save(run, 60, stage_fingerprint="of another plan")
    found = find_checkpoint(run, 2, "this")
    assert found is not None and found[1].step == 10
    assert find_checkpoint(run, 3, "this") is None


def truncate(run: Storage, path: str) -> None:
    run.write_bytes(path, run.read_bytes(path)[:-7])


@pytest.mark.parametrize("file", [STATE_FILE, INFO_FILE])
def test_a_truncated_file_is_passed_over_with_a_warning(
    file: str, run: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    save(run, 10)
    truncate(run, f"{save(run, 20)}/{file}")
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(run, 2, "this")
    assert found is not None and found[1].step == 10
    assert f"step-00000020 is damaged ({file}); trying the previous one" in caplog.text


def test_a_checkpoint_whose_state_is_missing_or_changed_is_passed_over(
    run: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    save(run, 10)
    run.remove(f"{save(run, 20)}/{STATE_FILE}")
    changed = f"{save(run, 30)}/{STATE_FILE}"
    run.write_bytes(changed, run.read_bytes(changed)[:-1] + b"\x01")
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(run, 2, "this")
    assert found is not None and found[1].step == 10 and caplog.text.count("is damaged") == 2


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"stage": "x"}', "\ufffd"])
def test_a_record_that_is_none_is_passed_over(text: str, run: Storage) -> None:
    run.write_text(f"{save(run, 20)}/{INFO_FILE}", text)
    assert find_checkpoint(run, 2, "this") is None


def test_all_damaged_means_to_start_anew(run: Storage) -> None:
    for step in (10, 20):
        truncate(run, f"{save(run, step)}/{STATE_FILE}")
    assert find_checkpoint(run, 2, "this") is None


def test_rays_own_files_beside_them_are_no_checkpoints(run: Storage) -> None:
    save(run, 10)
    run.write_text("checkpoints/ray/attempt-1/checkpoint_manager_snapshot.json", json.dumps({"checkpoints": []}))
    found = find_checkpoint(run, 2, "this")
    assert found is not None and found[1].step == 10


def test_only_the_newest_are_kept(run: Storage) -> None:
    save(run, 10, stage=1)
    for step in (10, 20, 30):
        save(run, step, keep=2)
    assert run.list_names("checkpoints/stage-02") == ["step-00000020", "step-00000030"]
    assert run.list_names("checkpoints/stage-01") == ["step-00000010"]


def test_damaged_ones_ahead_make_room_for_what_is_trained_again(run: Storage) -> None:
    for step in (10, 20, 30):
        save(run, step, keep=3)
    save(run, 15, keep=2)
    assert run.list_names("checkpoints/stage-02") == ["step-00000010", "step-00000015"]


def test_a_full_disk_is_a_sentence_and_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = Storage(str(tmp_path))
    save(run, 10)
    with monkeypatch.context() as patch:
        patch.setattr("growtx.storage.os.fsync", full)
        with pytest.raises(StoreError, match="the disk is full"):
            save(run, 20, keep=1)
    found = find_checkpoint(run, 2, "this")
    assert found is not None and found[1].step == 10


def test_a_finished_run_removes_them_all(run: Storage) -> None:
    save(run, 10)
    remove_checkpoints(run)
    assert find_checkpoint(run, 2, "this") is None and run.list_files("checkpoints") == []
    remove_checkpoints(run)
