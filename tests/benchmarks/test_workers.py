"""The plan that measures worker groups takes them in turn, and its figures are those of the second stage of a pair."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from benchmarks.growth import Shape
from benchmarks.workers import GroupFigures, _config, _figures
from growtx.growth.plan import resolve

SHAPE = Shape(hidden_size=16, num_heads=2, vocab_size=300, context_length=8, micro_batch=2, max_depth=3)


def test_numbers_of_workers_take_turns_with_the_same_windows_on_each_worker() -> None:
    config = _config(SHAPE, 3, [1, 2], rounds=2, num_steps=4)
    first, *measured = resolve(config.plan)
    assert (first.num_blocks, first.num_workers, first.train.steps) == (3, 1, 1)
    assert [stage.num_workers for stage in measured] == [1, 1, 2, 2] * 2
    assert {(stage.num_blocks, stage.num_active, stage.num_frozen) for stage in measured} == {(3, 1, 2)}
    assert {(stage.train.global_batch_size or 0) / (stage.num_workers or 0) for stage in measured} == {2}
    assert config.largest_group().num_workers == 2


def manifest(index: int, pause: float | None) -> Any:
    return SimpleNamespace(index=index, metrics={"pause_seconds": pause})


def test_the_ratio_is_the_median_of_those_within_a_round() -> None:
    pauses = [None, 1.0, None, 2.0, None, 3.0, None, 4.0, None, 5.0, None, 6.0]
    manifests = [manifest(index, pause) for index, pause in enumerate(pauses, start=2)]
    second_of_pairs = [100.0, 150.0, 10.0, 18.0, 1000.0, 1700.0]  # the machine changes its speed from round to round
    speeds = dict(zip(range(3, 14, 2), second_of_pairs, strict=True))
    assert list(_figures(manifests, speeds, [1, 2])) == [
        GroupFigures(1, 100.0, 1.0, 3.0),
        GroupFigures(2, 150.0, 1.7, 4.0),
    ]
