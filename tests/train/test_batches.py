"""Batches: a pure function of the position, whatever the number of workers and micro batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

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


def windows(found: list[dict[str, Any]]) -> list[int]:
    """Which windows are in micro batches, by their first token."""
    return [int(token) for batch in found for token in batch["input_ids"][:, 0]]


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, 4), (2, 1), (4, 2), (8, 1)])
def test_workers_together_see_the_global_batch_in_order(world_size: int, micro_batch_size: int) -> None:
    alone = batches()
    shares = [
        batches(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size) for rank in range(world_size)
    ]
    for step in (0, 1, 7):
        found = [share.at(step) for share in shares]
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
    windows_visited = stage.windows_visited(3)
    assert list(windows_visited) == sorted(set(windows_visited))
    assert set(windows_visited) == {int(number) for step in range(3) for number in stage.windows(step)}


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
        visited = len(stage.windows_visited(num_steps))
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
