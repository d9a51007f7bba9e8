"""A stage with and without its prefix cache: nothing that the cache costs is left out."""

from __future__ import annotations

import math

import pytest

from benchmarks.growth import Shape
from benchmarks.prefix_cache import _Round, speedup_bound, stage_timings

TINY = Shape(hidden_size=16, num_heads=2, vocab_size=40, context_length=8, micro_batch=2, max_depth=3)


def test_filling_is_counted_once_and_every_pass_as_it_was() -> None:
    measured = _Round(fill=3.0, recomputed=[4.0, 4.0], cached=[2.0, 1.0])
    assert measured.totals(1) == (4.0, 5.0) and measured.totals(2) == (8.0, 6.0)
    assert measured.break_even == pytest.approx(3.0 / 2.5)
    assert _Round(1.0, [1.0], [1.5]).break_even == math.inf


def test_the_bound_grows_with_the_passes_and_a_single_one_has_nothing_to_save() -> None:
    bounds = [speedup_bound(TINY, 3, passes) for passes in (1, 2, 4, 8)]
    assert bounds == sorted(bounds)
    assert speedup_bound(Shape(), 12, 1) == pytest.approx(1.0), "a single pass has nothing to save"


def test_a_stage_is_timed_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, break_even = stage_timings(TINY, depth=3, passes=(1, 2), num_steps=2, rounds=1)
    assert [row.num_passes for row in rows] == [1, 2] and break_even > 0
    assert all(0 < row.fill_seconds < row.cached_seconds for row in rows)
    assert [row.auto for row in rows] == ["recompute", "cache"]
    assert rows[1].speedup == rows[1].recompute_seconds / rows[1].cached_seconds
