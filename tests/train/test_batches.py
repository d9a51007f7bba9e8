"""Batches: a pure function of the position, whatever the number of workers and micro batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from growtx.data.packing import PackedSplit
from growtx.exceptions import StoreError
from growtx.models.loss import IGNORE_INDEX
from growtx.train.batches import Batches
from tests.train.windows import LENGTH, PAD, packed


def batches(**changes: Any) -> Batches:
    arguments: dict[str, Any] = {
        "seed": 0,
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "num_samples_before": 0,
        "rank": 0,
        "world_size": 1,
        "device": torch.device("cpu"),
    }
    return Batches(packed(), **{**arguments, **changes})


def windows(found: Iterable[dict[str, Any]]) -> list[int]:
    """Which windows are in micro batches, by their first token."""
    return [int(token) for batch in found for token in batch["input_ids"][:, 0]]


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, 4), (2, 1), (4, 2), (8, 1)])
def test_workers_together_see_the_global_batch_in_order(world_size: int, micro_batch_size: int) -> None:
    alone = batches()
    shares = [
        batches(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size) for rank in range(world_size)
    ]
    for step in (0, 1, 7):
        found = [list(share.at(step)) for share in shares]
        assert [window for share in found for window in windows(share)] == windows(alone.at(step))
        assert {len(batch["input_ids"]) for share in found for batch in share} == {micro_batch_size}


def test_a_later_stage_goes_on_where_the_earlier_one_ended() -> None:
    assert windows(batches(num_samples_before=16).at(0)) != windows(batches().at(0))
    whole = {window for step in range(5) for window in windows(batches().at(step))}
    half = {window for step in range(2) for window in windows(batches().at(step))}
    rest = {window for step in range(3) for window in windows(batches(num_samples_before=16).at(step))}
    assert half | rest == whole


def test_sources_are_mixed_by_weight_and_none_returns_before_it_is_through() -> None:
    seen = [window for step in range(3) for window in windows(batches().at(step))]  # 24 samples: 18 and 6
    first, second = [w for w in seen if w < 30], [w for w in seen if w >= 30]
    assert (len(first), len(second)) == (18, 6)
    assert len(set(first)) == 18 and len(set(second)) == 6


def test_padding_is_not_a_label() -> None:
    (batch,) = batches().at(0)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert (batch["input_ids"][:, -1] == PAD).all() and (batch["labels"][:, -1] == -100).all()
    assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, :-1])


def test_another_seed_is_another_order() -> None:
    assert windows(batches(seed=1).at(0)) != windows(batches().at(0)) == windows(batches(seed=0).at(0))


def test_the_windows_that_a_stage_will_visit_are_known_before_it_starts() -> None:
    stage = batches(micro_batch_size=4, world_size=2, rank=1)
    visited = stage.visiting_order(3)
    assert len(visited) == len(set(visited))
    assert set(visited) == {int(number) for step in range(3) for number in stage.windows(step)}


def test_windows_are_visited_in_one_order_whatever_the_batches_and_however_long_the_stage() -> None:
    long = batches().visiting_order(3)
    for batch, num_steps in ((4, 6), (2, 12), (8, 2)):
        other = batches(global_batch_size=batch, micro_batch_size=batch)
        assert other.order_fingerprint == batches().order_fingerprint
        order = other.visiting_order(num_steps)
        assert list(order) == list(long[: len(order)])
    filled_up = batches().visiting_order(1, multiple=5)
    assert len(filled_up) == 10 and list(filled_up) == list(long[:10])
    everything = batches().visiting_order(100, multiple=7)
    assert sorted(everything) == list(range(30)), "there is nothing to fill it up with"
    others = [batches(seed=1), batches(num_samples_before=8), batches(mix=packed().mix_of({"source-1": 1.0}))]
    assert len({found.order_fingerprint for found in [batches(), *others]}) == 4


@pytest.mark.parametrize(("world_size", "micro_batch_size", "num_micro"), [(3, 3, 1), (3, 2, 2), (5, 2, 1), (7, 1, 2)])
def test_a_batch_that_does_not_split_is_filled_up_with_windows_that_teach_nothing(
    world_size: int, micro_batch_size: int, num_micro: int
) -> None:
    shares = [
        batches(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size) for rank in range(world_size)
    ]
    found = [list(share.at(1)) for share in shares]
    assert {len(share) for share in found} == {num_micro}
    assert {tuple(batch["input_ids"].shape) for share in found for batch in share} == {(micro_batch_size, LENGTH)}
    taught = [
        int(row[0]) for share in found for batch in share for row in batch["labels"] if (row != IGNORE_INDEX).any()
    ]
    assert taught == windows(batches().at(1))


def test_the_next_micro_batch_is_read_while_a_step_computes_and_errors_come_when_it_is_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, read = batches(micro_batch_size=2), list[np.ndarray]()
    take = PackedSplit.take

    def noted(self: PackedSplit, windows_N: np.ndarray) -> np.ndarray:
        read.append(windows_N)
        if len(read) == 4:
            raise StoreError("the disk is gone")
        return take(self, windows_N)

    monkeypatch.setattr(PackedSplit, "take", noted)
    step = stage.at(0)
    next(step)
    stage._reader.submit(int).result()  # the thread has done what it was asked before
    assert len(read) == 2
    next(step)
    next(step)
    with pytest.raises(StoreError, match="the disk is gone"):
        next(step)
    stage.close()


def test_nothing_is_read_ahead_of_the_end_and_nothing_stale_is_given() -> None:
    stage = batches()
    list(stage.at(4, is_last=True))
    assert stage._ahead is None
    list(stage.at(0))  # reads step 1 ahead
    assert windows(stage.at(7)) == windows(batches().at(7)), "after a checkpoint of another step"
    stage.close()


class FakeCache:
    """Gives the numbers of the windows as states."""

    def read(self, windows_N: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(windows_N).float()[:, None, None].expand(-1, LENGTH, 2)


def test_cached_states_stand_in_for_tokens_of_the_same_windows() -> None:
    plain, cached = batches(micro_batch_size=2), batches(micro_batch_size=2)
    cached.read_prefix_from(FakeCache(), 3)  # type: ignore[arg-type]
    for tokens, states in zip(plain.at(1), cached.at(1), strict=True):
        assert torch.equal(states["input_ids"], tokens["input_ids"]) and states["first_block"] == 3
        assert torch.equal(states["labels"], tokens["labels"])
        assert torch.equal(states["prefix_hidden_states"][:, 0, 0] + 10, tokens["input_ids"][:, 0].float())


@pytest.mark.parametrize("before", [0, 3, 25, 26, 27, 40, 99])
def test_no_fewer_windows_are_visited_than_is_known_at_once(before: int) -> None:
    """Also where a round through a source ends in between, and a window comes again early in the next one."""
    stage = batches(num_samples_before=before)
    for num_steps in range(1, 24):
        visited = len(stage.visiting_order(num_steps))
        assert stage.least_visited(num_steps) <= visited
        assert stage.least_visited(num_steps) >= visited // 2 - 4, "and it says something"


def test_another_mix_reads_on_in_each_source_where_the_last_one_ended() -> None:
    first = batches()
    before = first.drawn(3)
    assert before == [18, 6]
    mix = packed().mix_of({"source-1": 1.0})
    only_second = batches(mix=mix, turns_before=before)
    found = windows(only_second.at(0))
    seen = {window for step in range(3) for window in windows(first.at(step)) if window >= 30}
    assert all(window >= 30 for window in found) and len(seen) == 6
    assert len(seen | set(found)) == 10, "ten windows: four new ones, then the next round"
    assert only_second.drawn(2) == [0, 16]
