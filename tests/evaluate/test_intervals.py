from __future__ import annotations

import numpy as np
import pytest

from growtx.evaluate.intervals import bootstrap_mean, bootstrap_ratio, wilson


def test_wilson_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I: 81 of 263, method 3 (score, no continuity correction)
    value, low, high = wilson(81, 263)
    assert (value, low, high) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)


def test_wilson_interval_of_none_and_of_all_stays_within_bounds() -> None:
    assert wilson(0, 20) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((1.0, 0.8389, 1.0), abs=1e-4)


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    value, low, high = bootstrap_mean(values.tolist())
    half = 1.96 * values.std(ddof=1) / 20
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.03)


def test_shares_get_wilson() -> None:
    assert bootstrap_mean([1.0, 0.0, 0.0, 1.0]) == wilson(2, 4)


def test_ratio_is_of_sums_not_a_mean_of_ratios() -> None:
    value, low, high = bootstrap_ratio([1.0, 30.0], [1.0, 10.0])
    assert value == pytest.approx(31 / 11)
    assert (low, high) == (1.0, 3.0)


def test_intervals_repeat_exactly() -> None:
    values = [0.1, 0.5, 0.9, 0.2]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
