from __future__ import annotations

import numpy as np
import pytest

from growtx.generator import key64, permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1023, 4097])
def test_every_number_is_hit_exactly_once(size: int) -> None:
    for seed in range(3):
        image = permute(np.arange(size), size, key64(seed))
        assert sorted(image.tolist()) == list(range(size))


def test_points_do_not_depend_on_what_else_is_asked() -> None:
    whole = permute(np.arange(1000), 1000, key64(7))
    part = permute(np.array([17, 999, 3]), 1000, key64(7))
    assert part.tolist() == whole[[17, 999, 3]].tolist()


def test_a_key_per_element_mixes_epochs_in_one_call() -> None:
    epochs = np.array([0, 1, 1, 2])
    mixed = permute(np.array([5, 5, 6, 6]), 50, key64(3, epochs))
    alone = [permute(np.array([p]), 50, key64(3, e))[0] for p, e in ((5, 0), (5, 1), (6, 1), (6, 2))]
    assert mixed.tolist() == alone


def test_huge_domains_cost_no_memory() -> None:
    size = 10**15
    image = permute(np.array([0, 1, size - 1]), size, key64(1))
    assert len(set(image.tolist())) == 3
    assert all(0 <= value < size for value in image.tolist())


def test_numbers_are_the_same_on_every_platform() -> None:
    assert permute(np.arange(8), 1000, key64(0, -1, 5)).tolist() == [233, 678, 998, 710, 51, 490, 602, 532]


def test_small_permutations_are_nearly_uniform() -> None:
    keys = key64(np.arange(6000))
    for position in range(5):
        counts = np.bincount(permute(np.full(6000, position), 5, keys), minlength=5)
        assert counts.min() > 1000
        assert counts.max() < 1400


def test_neighbours_are_torn_apart() -> None:
    image = permute(np.arange(10_000), 10_000, key64(2))
    assert abs(np.corrcoef(np.arange(10_000), image)[0, 1]) < 0.05
    assert (np.abs(np.diff(image)) == 1).sum() < 20
