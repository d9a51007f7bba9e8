"""Recompute the frozen prefix or cache it: the cheaper way that fits, with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.growth.flops import PrefixPlan, plan_prefix
from tests import tiny


def plan(**changes: Any) -> PrefixPlan:
    """Ten passes over 100 windows through two frozen blocks, with room for all of them."""
    counts = {"num_frozen": 2, "num_samples": 1000, "num_windows_to_cache": 100, "num_windows_missing": 100}
    sizes = {"bytes_per_number": 4, "bytes_available": 10**9}
    return plan_prefix(tiny.config(3), **{**counts, **sizes, **changes})


def test_windows_that_are_seen_again_and_again_are_cached() -> None:
    found = plan()
    assert (found.choice, found.reason) == ("cache", "the cache saves 90% of the prefix's FLOPs")
    assert found.cache_bytes == 100 * tiny.CONTEXT_LENGTH * tiny.HIDDEN_SIZE * 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_frozen": 0}, "there is no frozen prefix"),
        ({"bytes_available": 204_799}, "the cache would take 204,800 bytes, but only 204,799 are allowed"),
        ({"num_samples": 120}, "windows are seen too rarely for the cache to pay off"),
    ],
)
def test_what_does_not_pay_or_does_not_fit_is_recomputed(changes: dict[str, Any], reason: str) -> None:
    assert (plan(**changes).choice, plan(**changes).reason) == ("recompute", reason)


def test_what_is_cached_already_or_shared_by_trials_costs_less() -> None:
    assert plan(num_samples=120, num_windows_missing=50).choice == "cache"
    assert plan(num_samples=120, num_windows_missing=0).reason == "the cache saves 100% of the prefix's FLOPs"
    assert plan(num_samples=120, num_trials=4).choice == "cache"
