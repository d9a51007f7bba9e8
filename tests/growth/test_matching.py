"""Controls of equal cost: as many FLOPs as the plan they stand beside, to half a step."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.config import build_config
from growtx.growth.flops import stage_flops
from growtx.growth.plan import PlanConfig, Stage
from growtx.growth.scaling import plan_cost, resolve_matched, steps_for
from tests import tiny

TOKENS_PER_STEP = 64
PLAN = {"grow": {"blocks": 3, "lora_from": 3}, "train": {"tokens": 64_000, "learning_rate": 2e-3}}


def matched(**plan: Any) -> tuple[Stage, ...]:
    return resolve_matched(build_config(PlanConfig, {**PLAN, **plan}), tiny.config(3), tokens_per_step=TOKENS_PER_STEP)


def flops(*stages: Stage) -> float:
    return plan_cost(tiny.config(3), stages, "flops", tokens_per_step=TOKENS_PER_STEP)


def test_the_flops_of_a_plan_are_those_of_its_steps() -> None:
    first = matched()[0]
    assert flops(first) == 64_000 * stage_flops(tiny.config(3), first).total
    assert flops(*matched()) == sum(flops(stage) for stage in matched())


def test_a_control_of_equal_flops_sees_fewer_tokens_than_one_of_equal_tokens() -> None:
    (equal_tokens,) = matched(mode="monolithic")
    (equal_flops,) = matched(mode="monolithic", match="flops")
    assert equal_tokens.train.tokens == 3 * 64_000
    assert abs(flops(equal_flops) - flops(*matched())) <= flops(equal_flops) / equal_flops.train.num_steps(64) / 2
    assert equal_flops.train.tokens is not None and equal_flops.train.tokens < 3 * 64_000
    assert equal_flops.train.learning_rate == 2e-3 and (equal_flops.num_blocks, equal_flops.lora) == (3, None)


def test_a_plan_that_counts_steps_is_matched_too() -> None:
    (control,) = matched(mode="monolithic", match="flops", train={"steps": 100})
    assert control.train.steps is None
    assert flops(control) == pytest.approx(flops(*matched(train={"steps": 100})), rel=0.01)


def test_growing_itself_is_never_changed() -> None:
    assert matched(match="flops") == matched()


def test_a_length_is_at_least_one_step() -> None:
    assert steps_for(tiny.config(3), matched()[0], "flops", 1.0, tokens_per_step=TOKENS_PER_STEP) == 1


def test_a_stage_is_counted_with_its_own_batch() -> None:
    own = {"stages": [{"add": 1}, {"add": 2, "train": {"global_batch_size": 4}}], "grow": None, "train": {"steps": 10}}
    assert tiny.CONTEXT_LENGTH * 4 == 2 * TOKENS_PER_STEP
    stages = matched(**own)
    tokens = plan_cost(tiny.config(3), stages, "tokens", tokens_per_step=TOKENS_PER_STEP)
    assert tokens == 10 * TOKENS_PER_STEP + 10 * 2 * TOKENS_PER_STEP
    (control,) = matched(**own, mode="monolithic", match="flops")
    assert flops(control) == pytest.approx(flops(*stages), rel=0.05)
    assert steps_for(tiny.config(3), stages[1], "tokens", 6 * TOKENS_PER_STEP, tokens_per_step=TOKENS_PER_STEP) == 3
