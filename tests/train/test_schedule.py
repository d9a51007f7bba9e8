"""The learning rate is a pure function of the step: warm-up, then down to its share of the peak."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtx.growth.plan import StageTraining
from growtx.train.stage_run import learning_rate_factor, learning_rate_factors
from tests import tiny


def factors(num_steps: int, **train: object) -> list[float]:
    training = StageTraining(steps=num_steps, **train)  # type: ignore[arg-type]
    return [learning_rate_factor(training, step, num_steps) for step in range(num_steps)]


def test_warm_up_rises_in_equal_steps_to_the_peak_and_is_never_zero() -> None:
    assert factors(20, warmup=0.2)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_a_cosine_is_half_way_down_in_the_middle_and_ends_at_its_share() -> None:
    found = factors(100, warmup=0.0, final_learning_rate=0.1)
    assert found[0] == 1.0 and found[50] == pytest.approx(0.55) and found[99] == pytest.approx(0.1, abs=1e-3)


def test_a_line_falls_evenly() -> None:
    assert factors(4, warmup=0.0, schedule="linear", final_learning_rate=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_constant_stays_at_the_peak() -> None:
    assert factors(10, warmup=0.2, schedule="constant") == pytest.approx([0.5] + [1.0] * 9)


@given(
    num_steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    final=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_the_factor_never_leaves_its_bounds_and_falls_after_warm_up(
    num_steps: int, warmup: float, final: float, schedule: str
) -> None:
    found = factors(num_steps, warmup=warmup, final_learning_rate=final, schedule=schedule)
    peak = round(warmup * num_steps)
    assert all(0 < factor <= 1 or (factor == 0 and final == 0) for factor in found)
    assert found[:peak] == sorted(found[:peak])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(found[peak:], found[peak + 1 :], strict=False))


def test_a_step_beyond_the_plan_keeps_the_last_share() -> None:
    training = StageTraining(steps=10, final_learning_rate=0.2)
    assert learning_rate_factor(training, 50, 10) == pytest.approx(0.2)


def of_plan(**plan: object) -> list[tuple[float, float]]:
    """Factors of what is new and of what is old, over all steps of a plan of three stages of ten steps."""
    train = {"steps": 10, "warmup": 0.2, "schedule": "linear", "final_learning_rate": 0.0}
    found = tiny.stages(schedule="plan", grow={"blocks": 3}, train=train, **plan)
    return [learning_rate_factors(stage, step, 10) for stage in found for step in range(10)]


def test_one_schedule_of_a_plan_warms_up_once_and_decays_once_at_its_end() -> None:
    old = [factor for _, factor in of_plan(decay=0.2)]
    assert old[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert old[2:25] == [1.0] * 23
    assert old[25:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], abs=0.17) and old[24] > old[25] > old[29] > 0


def test_new_blocks_warm_up_in_a_plan_whose_rate_is_held_for_the_others() -> None:
    found = of_plan(decay=0.2)
    assert found[10:12] == [(0.5, 1.0), (1.0, 1.0)]
    assert found[20] == (0.5, 1.0) and found[:2] == [(0.5, 0.5), (1.0, 1.0)]


def test_a_decay_as_long_as_the_plan_spans_its_stages_without_a_jump() -> None:
    old = [factor for _, factor in of_plan(decay=1.0)]
    assert all(earlier - later == pytest.approx(1 / 30) for earlier, later in itertools.pairwise(old[2:]))


def test_a_stage_with_a_schedule_of_its_own_treats_old_and_new_alike() -> None:
    (stage,) = tiny.stages(grow={"blocks": 1}, train={"steps": 10, "warmup": 0.2})
    for step in range(10):
        factor = learning_rate_factor(stage.train, step, 10)
        assert learning_rate_factors(stage, step, 10) == (factor, factor)
