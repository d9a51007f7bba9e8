"""Controls of equal cost: how long something must train to take as many FLOPs as a plan."""

from __future__ import annotations

from growtx.growth.flops import stage_flops
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.growth.scaling import plan_cost
from growtx.models.configuration import GrowtxConfig


def tokens_for_flops(config: GrowtxConfig, stage: Stage, flops: float, *, tokens_per_step: int) -> int:
    """Tokens of `stage` that cost `flops`, in whole steps (at least one): the nearest number of them."""
    per_step = stage_flops(config, stage).total * tokens_per_step
    return max(1, round(flops / per_step)) * tokens_per_step


def resolve_matched(
    plan: PlanConfig,
    config: GrowtxConfig,
    *,
    tokens_per_step: int,
    num_stages_before: int = 0,
    num_blocks_before: int = 0,
) -> tuple[Stage, ...]:
    """`resolve`, with the control of `mode: monolithic, match: flops` as long as the plan's FLOPs last.

    Raises:
        ConfigError: as `resolve`.
    """
    before = {"num_stages_before": num_stages_before, "num_blocks_before": num_blocks_before}
    stages = resolve(plan, **before)
    if plan.mode != "monolithic" or plan.match != "flops":
        return stages
    (control,) = stages
    grown = resolve(plan.model_copy(update={"mode": "grow"}), **before)
    flops = plan_cost(config, grown, "flops", tokens_per_step=tokens_per_step)
    tokens = tokens_for_flops(config, control, flops, tokens_per_step=tokens_per_step)
    train = control.train.model_copy(update={"tokens": tokens, "steps": None})
    return (control.model_copy(update={"train": train}),)
