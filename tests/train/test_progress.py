"""Progress: one line for a whole run, posted without waiting, with warnings and the wish to stop going both ways."""

from __future__ import annotations

import io
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from growtx.train import progress
from growtx.train.progress import BoardHandler, Poster, ProgressBoard, StageProgress, eta_seconds, show_progress


def test_the_whole_run_advances_by_the_work_of_its_stages() -> None:
    def at(stage: int, fraction: float) -> float:
        return StageProgress(stage=stage, fraction=fraction, weights=(1.0, 3.0)).total_fraction

    assert StageProgress().total_fraction == 0.0
    assert [at(1, 0), at(1, 1), at(2, 0), at(2, 0.5), at(2, 1)] == [0, 0.25, 0.25, 0.625, 1.0]
    assert at(2, 7) == 1.0  # a stage that is limited by time may run past its expected steps


def test_a_line_says_stage_loss_and_speed_as_far_as_they_are_known() -> None:
    assert StageProgress().describe() == "starting workers"
    known = StageProgress(
        stage=2, name="depth-2", num_stages=4, loss=2.34567, bits_per_byte=1.5, tokens_per_second=12345
    )
    assert known.describe() == "stage 2/4 depth-2, loss 2.346, 1.500 bits/byte, 12,345 tokens/s"


def test_the_time_left_is_unknown_at_first_and_then_follows_the_mean_speed() -> None:
    assert eta_seconds(0.0, 10) is None and eta_seconds(0.009, 10) is None
    assert eta_seconds(0.25, 10) == 30 and eta_seconds(1.0, 10) == 0


class Future(SimpleNamespace):
    """What a remote call gives: a value, and whether it is there yet."""


class LocalBoard:
    """The board's actor in this process."""

    def __init__(self) -> None:
        self.actor = ProgressBoard.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
        self.ready = True

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Future:
            return Future(call=lambda: getattr(self.actor, method)(*arguments), board=self)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> LocalBoard:
    local = LocalBoard()

    def get(future: Future, timeout: float | None = None) -> Any:
        return future.call()

    def wait(futures: list[Future], timeout: float) -> tuple[list[Future], list[Future]]:
        return (futures, []) if local.ready else ([], futures)

    monkeypatch.setattr(progress, "ray", SimpleNamespace(get=get, wait=wait, exceptions=ray.exceptions))
    return local


def test_the_board_keeps_the_last_progress_and_hands_out_warnings_once(board: LocalBoard) -> None:
    board.actor.post(StageProgress(stage=1))
    board.actor.post(StageProgress(stage=2))
    board.actor.warn("checkpoint is damaged")
    assert board.actor.read() == (StageProgress(stage=2), ["checkpoint is damaged"])
    assert board.actor.read() == (StageProgress(stage=2), [])


def test_the_wish_to_stop_reaches_the_worker_with_its_next_post(board: LocalBoard) -> None:
    poster = Poster(board)
    poster.post(StageProgress(stage=1))
    assert not poster.stop_requested
    board.actor.request_stop()
    poster.post(StageProgress(stage=1, fraction=0.5))  # collects the answer to the post before
    poster.post(StageProgress(stage=1, fraction=0.6))
    assert poster.stop_requested


def test_a_slow_board_never_holds_training_up(board: LocalBoard) -> None:
    poster = Poster(board)
    poster.post(StageProgress(stage=1))
    board.ready = False
    for _ in range(3):
        poster.post(StageProgress(stage=2))
    assert not poster.stop_requested


def test_a_lost_driver_is_no_error_of_training(board: LocalBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        raise ray.exceptions.RayActorError

    poster = Poster(board)
    poster.post(StageProgress(stage=1))
    monkeypatch.setattr(progress.ray, "get", lost)
    for _ in range(3):
        poster.post(StageProgress(stage=1))


def test_training_without_a_board_posts_nowhere() -> None:
    Poster(None).post(StageProgress(stage=1))


def show(board: LocalBoard, console: Console, seconds: float = 0.3) -> None:
    with show_progress({"growing": board}, console):
        time.sleep(seconds)


def test_without_a_terminal_lines_are_printed_and_warnings_among_them(
    board: LocalBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.02)
    board.actor.post(StageProgress(stage=1, name="depth-1", num_stages=2, fraction=0.5, weights=(1.0, 1.0), loss=3.0))
    board.actor.warn("checkpoint x is damaged [y]")
    console = Console(file=io.StringIO(), record=True, width=120)
    show(board, console)
    printed = console.export_text()
    assert "growing  25%  stage 1/2 depth-1, loss 3.000" in printed
    assert printed.count("warning: checkpoint x is damaged [y]") == 1


def test_a_warning_of_the_last_moment_is_printed_too(board: LocalBoard) -> None:
    console = Console(file=io.StringIO(), record=True, width=120)
    with show_progress({"growing": board}, console):
        board.actor.warn("late")
    assert "warning: late" in console.export_text()


def test_of_several_boards_each_has_a_line_and_warnings_say_whose_they_are(
    board: LocalBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.02)
    other = LocalBoard()
    other.actor.post(StageProgress(stage=1, name="depth-1", num_stages=1))
    other.actor.warn("late")
    console = Console(file=io.StringIO(), record=True, width=120)
    with show_progress({"russian": board, "zh": other}, console):
        time.sleep(0.3)
    printed = console.export_text()
    assert "russian   0%  starting workers" in printed and "zh        0%  stage 1/1 depth-1" in printed
    assert "warning: zh: late" in printed


def test_on_a_terminal_one_bar_is_drawn(board: LocalBoard) -> None:
    board.actor.post(StageProgress(stage=2, name="depth-2", num_stages=2, fraction=0.5, weights=(1.0, 1.0)))
    console = Console(file=io.StringIO(), record=True, width=120, force_terminal=True)
    show(board, console, 1.2)
    printed = console.export_text()
    assert "growing" in printed and "75%" in printed and "stage 2/2 depth-2" in printed


def test_warnings_of_a_worker_reach_the_board_and_lesser_messages_do_not(board: LocalBoard) -> None:
    logger = logging.Logger("growtx.worker")
    calls: list[str] = []
    handler = BoardHandler(SimpleNamespace(warn=SimpleNamespace(remote=calls.append)))
    logger.addHandler(handler)
    logger.info("step %d", 1)
    logger.warning("checkpoint %s is damaged", "x")
    assert calls == ["checkpoint x is damaged"]
