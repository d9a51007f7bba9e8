"""Recompute or cache: decided by FLOPs and bytes, and told why."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.growth.prefix_plan import PrefixPlan, plan_prefix
from growtx.models.counting import block_forward_flops
from tests import tiny


def decide(**changes: Any) -> PrefixPlan:
    known: dict[str, Any] = {
        "num_frozen": 2,
        "num_samples": 400,
        "num_windows_to_cache": 100,
        "num_windows_missing": 100,
        "bytes_per_number": 4,
        "bytes_available": 10**9,
    }
    return plan_prefix(tiny.config(3), **{**known, **changes})


def test_windows_seen_four_times_are_worth_caching() -> None:
    plan = decide()
    assert plan.choice == "cache" and "saves 75%" in plan.reason


def test_windows_seen_once_are_not() -> None:
    assert decide(num_samples=100).choice == "recompute"


def test_trials_share_the_cost() -> None:
    assert decide(num_samples=100, num_trials=8).choice == "cache"


def test_what_is_cached_already_costs_nothing() -> None:
    plan = decide(num_samples=100, num_windows_missing=0)
    assert plan.choice == "cache" and plan.cache_flops == 0


def test_a_cache_that_does_not_fit_is_not_made() -> None:
    plan = decide(bytes_available=10)
    assert plan.choice == "recompute" and f"{plan.cache_bytes:,} bytes" in plan.reason


def test_without_a_prefix_there_is_nothing_to_cache() -> None:
    assert decide(num_frozen=0).reason == "there is no frozen prefix"


def test_costs_are_those_of_the_prefix_alone() -> None:
    plan, config = decide(), tiny.config(3)
    per_window = 2 * block_forward_flops(config, tiny.CONTEXT_LENGTH).total * tiny.CONTEXT_LENGTH
    assert plan.recompute_flops == pytest.approx(400 * per_window)
    assert plan.cache_flops == pytest.approx(100 * per_window)
    assert plan.cache_bytes == 100 * tiny.CONTEXT_LENGTH * config.hidden_size * 4
