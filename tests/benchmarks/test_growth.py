"""The benchmark's bounds are the ones that the design states, and its ways do train."""

from __future__ import annotations

import pytest

from benchmarks.growth import Shape, _bounds, engine_step, stage_of

TINY = Shape(hidden_size=16, num_heads=2, vocab_size=40, context_length=8, micro_batch=2, max_depth=3)


def test_the_bounds_at_twelve_blocks_are_a_half_and_a_quarter() -> None:
    bounds = _bounds(Shape(), 12, 1)
    assert bounds["recompute"] == pytest.approx(0.50, abs=0.015)
    assert bounds["cache"] == pytest.approx(0.25, abs=0.015)


def test_the_measured_stage_adds_what_it_should() -> None:
    assert (stage_of(3, 1).num_frozen, stage_of(3, 1).num_active) == (2, 1)
    assert (stage_of(3, 3).num_frozen, stage_of(3, 3).num_active) == (0, 3)


@pytest.mark.parametrize("cached", [False, True])
def test_a_measured_step_lowers_the_loss(cached: bool, process_group: None) -> None:
    step = engine_step(TINY, 3, 1, cached=cached)
    losses = [float(nats / count) for nats, count in (step() for _ in range(8))]
    assert losses[-1] < losses[0]
