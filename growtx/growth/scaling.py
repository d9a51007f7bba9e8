"""The same plan, longer or shorter, so that plans are compared at equal tokens or at equal FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from growtx.exceptions import ConfigError
from growtx.growth.flops import stage_flops
from growtx.growth.plan import PlanConfig, Stage, StageConfig, resolve
from growtx.models.configuration import GrowtxConfig

Measure = Literal["tokens", "flops"]


def plan_cost(config: GrowtxConfig, stages: Sequence[Stage], measure: Measure, *, tokens_per_step: int) -> float:
    """Tokens of all stages together, or FLOPs: the forward pass of the frozen prefix in every step included."""
    per_token = [1.0 if measure == "tokens" else stage_flops(config, stage).total for stage in stages]
    return sum(
        cost * stage.train.num_steps(tokens_per_step) * tokens_per_step
        for cost, stage in zip(per_token, stages, strict=True)
    )


def scaled_to(
    plan: PlanConfig, config: GrowtxConfig, measure: Measure, wanted: float, *, tokens_per_step: int
) -> PlanConfig:
    """The plan with every stage longer or shorter by one factor, so that all stages together cost `wanted`.

    Stages keep their shares. Lengths are whole steps; what rounding leaves goes to the next stage, so the sum is right
    to about half a step.

    Raises:
        ConfigError: a stage ends by time or convergence, so that its cost is not known before it has run.
    """
    stages = resolve(plan)
    if any(stage.train.seconds or stage.train.convergence for stage in stages):
        raise ConfigError(
            "plan: a stage ends by seconds or convergence, so that its tokens and FLOPs are not known in advance",
            "Limit every stage of a study by train.tokens or train.steps",
        )
    factor = wanted / plan_cost(config, stages, measure, tokens_per_step=tokens_per_step)
    if plan.mode == "monolithic":
        (stage,) = stages
        written: tuple[StageConfig, ...] = (_as_written(stage),)
    else:
        written = plan.stage_configs()
    lengths, left = [], 0.0
    for stage in stages:
        exact = stage.train.num_steps(tokens_per_step) * factor + left
        lengths.append(max(1, round(exact)))
        left = exact - lengths[-1]
    changed = tuple(_with_steps(stage, steps) for stage, steps in zip(written, lengths, strict=True))
    train = {key: value for key, value in plan.train.items() if key not in ("tokens", "steps")}
    tree: dict[str, Any] = {**plan.model_dump(), "mode": "grow", "grow": None, "stages": changed, "train": train}
    return PlanConfig.model_validate(tree)


def _as_written(stage: Stage) -> StageConfig:
    """The control's one stage, into which `mode: monolithic` turns them all."""
    return StageConfig(name=stage.name, add=stage.add, train_substrate=stage.train_substrate, init=stage.init)


def _with_steps(stage: StageConfig, steps: int) -> StageConfig:
    train = {key: value for key, value in stage.train.items() if key != "tokens"}
    return stage.model_copy(update={"train": {**train, "steps": steps}})


# Controls of equal cost: how long a control must train to use as many FLOPs as a plan.


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
    """Like `resolve`, but the control of `mode: monolithic, match: flops` trains for as many FLOPs as the plan.

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
