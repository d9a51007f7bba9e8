"""`growtx plan --budget / --memory-gib`: a preset's plan replaced by one that the budget solver proposes."""

from __future__ import annotations

from typing import Any

import yaml

from growtx.config import build
from growtx.exceptions import ConfigError
from growtx.growth.plan import LoraConfig, resolve
from growtx.growth.solver import GIB, Limits, propose
from growtx.pipeline.forecasting import placement_of, planned_architecture
from growtx.pipeline.run_config import DEFAULT_PRESET, RunConfig, load_run_config

_ENDS = ("tokens", "steps")


def solved_preset(
    preset: str | None,
    overrides: list[str],
    *,
    budget: int | None = None,
    memory_gib: float | None = None,
    num_blocks: int | None = None,
) -> tuple[RunConfig, str]:
    """The configuration with a proposed plan, and the YAML of a preset that `rayjobs/grow.py` takes as it is.

    Args:
        num_blocks: target depth; None: that of the preset's plan.

    Raises:
        BudgetError: nothing fits; ConfigError: a limit that is none.
    """
    if (budget is not None and budget < 1) or (memory_gib is not None and not memory_gib > 0) or (num_blocks or 1) < 1:
        raise ConfigError("--budget, --memory-gib and --blocks must be positive", "Give a positive number")
    config = load_run_config(preset, overrides)
    depth = num_blocks or resolve(config.plan)[-1].num_blocks
    proposal = propose(
        planned_architecture(config),
        depth,
        Limits(budget, round(memory_gib * GIB) if memory_gib else None),
        placement_of(config),
        train=_train(config),
        tokens_per_step=config.tokens_per_step,
        lora=config.plan.grow.lora if config.plan.grow else LoraConfig(),
    )
    plan = {"grow": None, "init": config.plan.init, **_written(proposal.plan)}
    training = _changes(config, proposal.placement)
    tree = config.model_dump(mode="json")
    solved = build(RunConfig, {**tree, "plan": plan, "training": {**tree["training"], **training}})
    written = {"extends": preset or DEFAULT_PRESET, "plan": plan, **({"training": training} if training else {})}
    return solved, str(yaml.safe_dump(written, sort_keys=False, width=110))


def _train(config: RunConfig) -> dict[str, Any]:
    """The defaults of the preset's stages; a plan that shares out its tokens gives each as many as its last one."""
    train = dict(config.plan.train)
    if not any(train.get(end) for end in _ENDS):
        last = resolve(config.plan)[-1].train
        train |= {end: getattr(last, end) for end in _ENDS if getattr(last, end)}
    return train


def _written(plan: Any) -> dict[str, Any]:
    """The plan as short as it can be written."""
    return {
        "budget": plan.budget.model_dump(mode="json"),
        "train": plan.train,
        "stages": [stage.model_dump(mode="json", exclude_defaults=True) or {"add": 1} for stage in plan.stages],
    }


def _changes(config: RunConfig, placement: Any) -> dict[str, Any]:
    """Settings of `training` that the proposal needs otherwise than they are."""
    before = placement_of(config)
    wanted = {
        "zero_stage": (before.zero_stage, placement.zero_stage),
        "micro_batch_size": (before.micro_batch, placement.micro_batch),
        "activation_checkpointing": (before.activation_checkpointing, placement.activation_checkpointing),
    }
    return {key: new for key, (old, new) in wanted.items() if old != new}
