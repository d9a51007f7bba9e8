"""The budget solver: stages for a target depth within a limit on active parameters, or on memory.

Each stage adds as many blocks as fit, so that there are few stages, each training as much as possible. Where head and
blocks do not fit together, blocks train under a frozen head, and the head in a stage of its own after them. A LoRA
phase over all blocks comes last, with the rank that uses up the same budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from growtx.exceptions import BudgetError
from growtx.growth.forecast import Placement, forecast
from growtx.growth.lora import num_adapter_parameters
from growtx.growth.plan import BudgetConfig, LoraConfig, PlanConfig, StageConfig, resolve
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import num_params

GIB = 2**30


@dataclass(frozen=True)
class SolverLimits:
    """What no stage may exceed; at least one is given."""

    active_parameters: int | None = None
    memory_bytes: int | None = None  # of a worker


@dataclass(frozen=True)
class Proposal:
    """A plan within its limits, and the placement under which its stages fit the memory."""

    plan: PlanConfig
    placement: Placement


def propose(
    config: GrowtxConfig,
    num_blocks: int,
    limits: SolverLimits,
    placement: Placement,
    *,
    train: Mapping[str, Any],
    tokens_per_step: int,
    lora: LoraConfig | None = None,
) -> Proposal:
    """The plan with the fewest stages that grows `num_blocks` blocks within the limits.

    Args:
        config: the shape; its depth is not used.
        placement: tried first; where memory does not suffice for one block, cheaper ones are tried.
        train: defaults of every stage, as in a plan.
        lora: alpha, dropout and targets of the LoRA phase, whose rank is computed; None: no such phase.

    Raises:
        BudgetError: not even one block at a time fits; names what would.
    """
    budget, memory = limits.active_parameters, limits.memory_bytes
    most = _most_blocks(config, num_blocks, budget)
    for candidate in _cheaper(placement) if memory else [placement]:
        for per_stage in range(most, 0, -1):
            for adapters in (lora, None):
                plan = _plan(config, num_blocks, per_stage, budget=budget, lora=adapters, train=train)
                if memory is None or _needs(config, plan, candidate, tokens_per_step) <= memory:
                    return Proposal(plan, candidate)
    *_, last = _cheaper(placement)
    smallest = _plan(config, num_blocks, 1, budget=budget, lora=None, train=train)
    needed = _needs(config, smallest, last, tokens_per_step)
    raise BudgetError(
        f"--memory-gib {(memory or 0) / GIB:g}: one block at a time needs {needed / GIB:.2f} GiB on a worker, under "
        f"ZeRO {last.zero_stage} with activation checkpointing and {last.micro_batch} windows at a time",
        f"Give {needed / GIB + 0.005:.2f} or more, raise resources.num_workers, or lower model.context_length",
    )


def _most_blocks(config: GrowtxConfig, num_blocks: int, budget: int | None) -> int:
    """Blocks that may train at the same time."""
    if budget is None:
        return num_blocks
    head, block = _head(config), num_params(config).per_block
    if budget < max(head, block):
        raise BudgetError(
            f"--budget {budget}: the LM head and final norm have {head} parameters, a block {block}",
            f"Give at least {max(head, block)} to train them in turn, {head + block} to train them together",
        )
    together = (budget - head) // block
    return min(num_blocks, together or budget // block)


def _head(config: GrowtxConfig) -> int:
    counts = num_params(config)
    return counts.final_norm + counts.head


def _plan(
    config: GrowtxConfig,
    num_blocks: int,
    per_stage: int,
    *,
    budget: int | None,
    lora: LoraConfig | None,
    train: Mapping[str, Any],
) -> PlanConfig:
    head, block = _head(config), num_params(config).per_block
    limit = budget if budget is not None else head + per_stage * block
    together = head + per_stage * block <= limit
    stages: list[StageConfig] = []
    for before in range(0, num_blocks, per_stage):
        add = min(per_stage, num_blocks - before)
        stages.append(StageConfig(add=add, head=together))
        if not together:
            stages.append(StageConfig(name=f"head-{before + add}", add=0))
    if lora is not None and (rank := _rank(config, num_blocks, limit, lora)):
        adapted = lora.model_copy(update={"rank": rank, "alpha": lora.alpha / lora.rank * rank})
        with_head = head + _adapters(config, num_blocks, adapted) <= limit
        stages.append(StageConfig(name=f"lora-{num_blocks}", add=0, head=with_head, lora=adapted))
    return PlanConfig(stages=tuple(stages), train=dict(train), budget=BudgetConfig(active_parameters=limit))


def _adapters(config: GrowtxConfig, num_blocks: int, lora: LoraConfig) -> int:
    return num_blocks * num_adapter_parameters(lora, config.hidden_size, config.mlp_width)


def _rank(config: GrowtxConfig, num_blocks: int, limit: int, lora: LoraConfig) -> int:
    """The largest rank on all blocks, next to the head if that leaves any; at most half of full rank."""
    per_rank = _adapters(config, num_blocks, lora.model_copy(update={"rank": 1}))
    beside_head = (limit - _head(config)) // per_rank
    return min(beside_head if beside_head >= 1 else limit // per_rank, config.hidden_size // 2)


def _needs(config: GrowtxConfig, plan: PlanConfig, placement: Placement, tokens_per_step: int) -> int:
    """Bytes on a worker of the stage that needs the most."""
    rows = forecast(config, resolve(plan), placement, tokens_per_step=tokens_per_step)
    return max(row.memory.total for row in rows)


def _cheaper(placement: Placement) -> Iterator[Placement]:
    """Placements that need less and less memory, those that cost the least time first."""
    yield placement
    if not placement.activation_checkpointing:
        placement = replace(placement, activation_checkpointing=True)
        yield placement
    while placement.micro_batch % 2 == 0:
        placement = replace(placement, micro_batch=placement.micro_batch // 2)
        yield placement
    for zero_stage in range(placement.zero_stage + 1, 4):
        placement = replace(placement, zero_stage=zero_stage)
        yield placement
