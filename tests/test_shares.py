from __future__ import annotations

import numpy as np
import pytest

from growtx.generator import turns_after, weighted_round_robin


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (3.0, 1.0), (0.5, 0.3, 0.2), (1e-3, 1.0, 7.0, 0.1)])
def test_shares_are_exact_at_every_length(weights: tuple[float, ...]) -> None:
    members, _ = weighted_round_robin(np.arange(5000), weights)
    for member, weight in enumerate(weights):
        counted = np.cumsum(members == member)
        expected = np.arange(1, 5001) * weight / sum(weights)
        assert np.abs(counted - expected).max() < member + 1.001


def test_each_member_takes_its_turns_in_order() -> None:
    members, counts = weighted_round_robin(np.arange(1000), (2.0, 1.0, 4.0))
    for member in range(3):
        mine = counts[members == member]
        assert mine.tolist() == list(range(len(mine)))


def test_a_turn_is_known_without_its_predecessors() -> None:
    weights = (0.7, 0.2, 0.1)
    members, counts = weighted_round_robin(np.arange(400), weights)
    for start in (0, 13, 399):
        late_members, late_counts = weighted_round_robin(np.arange(start, start + 1), weights)
        assert (late_members[0], late_counts[0]) == (members[start], counts[start])


def test_far_positions_keep_their_shares() -> None:
    far = 10**11 + np.arange(10_000)
    members, counts = weighted_round_robin(far, (0.25, 0.75))
    assert (members == 0).sum() == 2500
    assert np.diff(counts[members == 1]).tolist() == [1] * 7499


@pytest.mark.parametrize("weights", [(1.0,), (3.0, 1.0), (0.0, 2.0, 1.0), (2.0, 0.0), (0.2, 0.3, 0.0)])
@pytest.mark.parametrize("number", [0, 1, 7, 1000])
def test_turns_are_known_without_taking_them(weights: tuple[float, ...], number: int) -> None:
    members, _ = weighted_round_robin(np.arange(number), weights)
    assert turns_after(number, weights) == np.bincount(members, minlength=len(weights)).tolist()
