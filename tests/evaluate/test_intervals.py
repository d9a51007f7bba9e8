from __future__ import annotations

import math

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


@pytest.mark.parametrize("num_items", [10, 100])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_wilson_intervals_hold_the_true_share_in_95_of_100_samples(num_items: int, share: float) -> None:
    """Exactly, over all outcomes; intervals of 90 or 99 % would lie outside."""
    covered = 0.0
    for num_correct in range(num_items + 1):
        probability = math.comb(num_items, num_correct) * share**num_correct * (1 - share) ** (num_items - num_correct)
        _, low, high = wilson(num_correct, num_items)
        assert 0.0 <= low <= high <= 1.0  # type: ignore[operator]
        covered += probability * (low <= share <= high)  # type: ignore[operator]
    assert 0.91 < covered < 0.985


def test_wilson_intervals_are_95_percent_on_average() -> None:
    shares = np.linspace(0.05, 0.95, 181)
    ends = [wilson(num_correct, 60) for num_correct in range(61)]
    log_choose = [math.log(math.comb(60, num_correct)) for num_correct in range(61)]
    covered = np.zeros(len(shares))
    for num_correct, (_, low, high) in enumerate(ends):
        log_probability = (
            log_choose[num_correct] + num_correct * np.log(shares) + (60 - num_correct) * np.log1p(-shares)
        )
        covered += np.exp(log_probability) * ((shares >= low) & (shares <= high))
    assert covered.mean() == pytest.approx(0.95, abs=0.008)


def test_a_share_near_the_bounds_has_an_interval_inside_them() -> None:
    for num_items in (1, 3, 7, 20, 50):
        for num_correct in range(num_items + 1):
            value, low, high = wilson(num_correct, num_items)
            assert 0.0 <= low <= value <= high <= 1.0  # type: ignore[operator]


def test_bootstrap_intervals_hold_the_true_mean_in_95_of_100_samples() -> None:
    generator = np.random.default_rng(0)
    num_samples, num_items = 500, 80
    widths, covered = [], 0
    for number in range(num_samples):
        values = generator.normal(3.0, 2.0, num_items)
        _, low, high = bootstrap_mean(values, seed=number)
        covered += low <= 3.0 <= high  # type: ignore[operator]
        widths.append((high - low) / (values.std() / math.sqrt(num_items)))  # type: ignore[operator]
    assert 0.92 < covered / num_samples < 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96, rel=0.02)  # 90 %: 3.29; 20 resamples: 3.4


def test_an_interval_depends_on_its_seed_alone() -> None:
    values = np.random.default_rng(5).normal(0.0, 1.0, 50)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    assert bootstrap_mean(values) == bootstrap_mean(values, seed=0)
