"""Plans of equal cost: a plan made longer or shorter, and the monolithic control of a plan.

Costs are tokens or FLOPs of whole optimizer steps. `tokens_per_step` is always that of stages without a batch size of
their own; a stage with `train.global_batch_size` is counted with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.growth.assembly import recorded_config
from growtx.growth.flops import optimizer_flops, stage_flops
from growtx.growth.plan import PlanConfig, Stage, StageConfig, monolithic_stage, resolve
from growtx.models.configuration import GrowtxConfig
from growtx.store.manifest import Manifest

Measure = Literal["tokens", "flops"]


def plan_cost(config: GrowtxConfig, stages: Sequence[Stage], measure: Measure, *, tokens_per_step: int) -> float:
    """Tokens of all stages together, or FLOPs: the forward pass of the frozen prefix in every step included."""
    total = 0.0
    for stage in stages:
        per_step = _tokens_of_step(config, stage, tokens_per_step)
        total += _cost_of_step(config, stage, measure, per_step) * stage.train.num_steps(per_step)
    return total


def lineage_flops(manifests: Sequence[Manifest], *, since: int = 0, tokens_per_step: int) -> float:
    """FLOPs of finished stages, by the tokens that they really trained on.

    Args:
        manifests: of a lineage, first to last.
        since: stages up to this index are not counted.
    """
    total, tokens_before = 0.0, 0
    for manifest in manifests:
        num_tokens, tokens_before = manifest.num_tokens - tokens_before, manifest.num_tokens
        if manifest.index > since:
            config, stage = recorded_config(manifest), build_config(Stage, manifest.stage)
            per_step = _tokens_of_step(config, stage, tokens_per_step)
            total += _cost_of_step(config, stage, "flops", per_step) * num_tokens / per_step
    return total


def steps_for(config: GrowtxConfig, stage: Stage, measure: Measure, wanted: float, *, tokens_per_step: int) -> int:
    """How many steps of `stage` cost `wanted`: the nearest whole number, at least one."""
    per_step = _cost_of_step(config, stage, measure, _tokens_of_step(config, stage, tokens_per_step))
    return max(1, round(wanted / per_step))


def _cost_of_step(config: GrowtxConfig, stage: Stage, measure: Measure, num_tokens: int) -> float:
    if measure == "tokens":
        return num_tokens
    return stage_flops(config, stage).total * num_tokens + optimizer_flops(config, stage)


def _tokens_of_step(config: GrowtxConfig, stage: Stage, default: int) -> int:
    return stage.train.tokens_per_step(config.max_position_embeddings, default=default)


def scaled_to(
    plan: PlanConfig, config: GrowtxConfig, measure: Measure, wanted: float, *, tokens_per_step: int
) -> PlanConfig:
    """The plan with every stage longer or shorter by one factor, so that all stages together cost `wanted`.

    Stages keep their shares. Lengths are whole steps; what rounding leaves goes to the next stage, so the sum is right
    to about half a step. A plan of mode monolithic becomes its control, written out.

    Raises:
        ConfigError: a stage ends by time or convergence, so that its cost is not known before it has run.
    """
    stages = resolve(plan)
    if any(stage.train.seconds or stage.train.convergence for stage in stages):
        raise ConfigError(
            "plan: a stage ends by seconds or convergence, so that its tokens and FLOPs are not known in advance",
            "Limit every stage of a study by train.tokens or train.steps",
        )
    if plan.mode == "monolithic":
        return control_plan(plan, config, measure, wanted, tokens_per_step=tokens_per_step)
    factor = wanted / plan_cost(config, stages, measure, tokens_per_step=tokens_per_step)
    changed, left = [], 0.0
    for stage, written in zip(stages, plan.stage_configs(), strict=True):
        exact = stage.train.num_steps(_tokens_of_step(config, stage, tokens_per_step)) * factor + left
        num_steps = max(1, round(exact))
        left = exact - num_steps
        changed.append(_with_steps(written, num_steps))
    return _written_out(plan, changed)


def _with_steps(stage: StageConfig, num_steps: int) -> StageConfig:
    return stage.model_copy(update={"train": {**_without_length(stage.train), "steps": num_steps}})


def _written_out(plan: PlanConfig, stages: Sequence[StageConfig]) -> PlanConfig:
    """A plan of these stages, each with a length of its own, and of everything else that `plan` says."""
    changes = {"mode": "grow", "grow": None, "stages": tuple(stages), "train": _without_length(plan.train)}
    return PlanConfig.model_validate({**plan.model_dump(), **changes})


def _without_length(train: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in train.items() if key not in ("tokens", "steps", "seconds", "convergence")}


# Controls: the shape of a plan's last depth, every block trained from the start, at the cost of the plan.


def control_plan(
    plan: PlanConfig,
    config: GrowtxConfig,
    measure: Measure,
    wanted: float,
    *,
    tokens_per_step: int,
    num_blocks: int | None = None,
    num_blocks_before: int = 0,
) -> PlanConfig:
    """The control of a plan, written as a plan of one stage that costs `wanted`; it trains as the first stage does.

    Args:
        num_blocks: depth of the control; None: that of the plan.
        num_blocks_before: of the lineage that plan and control continue, if they do.
    """
    first, *_ = stages = resolve(plan.model_copy(update={"mode": "grow"}), num_blocks_before=num_blocks_before)
    stage = monolithic_stage(first, stages[-1].num_blocks if num_blocks is None else num_blocks)
    written = StageConfig(
        name=stage.name,
        add=stage.add,
        active=None if stage.num_active == stage.add or plan.unfreeze else stage.num_active,
        train_substrate=stage.train_substrate,
        init=stage.init,
        insert=stage.insert,
        num_workers=stage.num_workers,
        train=plan.stage_configs()[0].train,
    )
    num_steps = steps_for(config, stage, measure, wanted, tokens_per_step=tokens_per_step)
    return _written_out(plan, [_with_steps(written, num_steps)])


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
    num_steps = steps_for(config, control, "flops", flops, tokens_per_step=tokens_per_step)
    length = {"tokens": num_steps * _tokens_of_step(config, control, tokens_per_step), "steps": None}
    return (control.model_copy(update={"train": control.train.model_copy(update=length)}),)
