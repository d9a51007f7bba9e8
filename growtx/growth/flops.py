"""What a stage computes for one token of a training step, counted product by product.

`models/counting.py` has the simple formulas for a whole block or model; this is what autograd really does in a stage:
weights that are frozen get no gradient, a frozen prefix only runs forward, and adapters are cheap but send gradients
through every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from growtx.exceptions import BudgetError
from growtx.growth.lora import num_adapter_parameters
from growtx.growth.plan import BudgetConfig, Stage
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import TokenFlops, block_forward_flops, head_forward_flops, num_params

_READ_THE_INPUT = ("q_proj", "k_proj", "v_proj")


def num_blocks_with_gradients(stage: Stage) -> int:
    """Uppermost blocks that gradients pass through: all of them where adapters or the substrate train."""
    return stage.num_blocks if stage.lora or stage.train_substrate else stage.num_blocks - stage.num_prefix


def stage_flops(
    config: GrowtxConfig, stage: Stage, *, prefix_cached: bool = False, activation_checkpointing: bool = False
) -> TokenFlops:
    """FLOPs per token of a training step; `config` gives the shape, its depth is not used.

    Args:
        prefix_cached: the states that leave the frozen prefix are read and not computed.
        activation_checkpointing: blocks with gradients run forward twice.
    """
    block = block_forward_flops(config, config.max_position_embeddings)
    through = num_blocks_with_gradients(stage)
    forward = block * (through if prefix_cached else stage.num_blocks)
    backward = TokenFlops(block.weights * (through + stage.num_active), 2 * block.attention * through)
    head = head_forward_flops(config) * (2 + stage.head)  # its input has a gradient: something below always trains
    total = forward + backward + head + _adapters(config, stage, 4 if activation_checkpointing else 3)
    return total + _again(config, block) * through if activation_checkpointing else total


def _again(config: GrowtxConfig, block: TokenFlops) -> TokenFlops:
    """A block's second forward pass, which ends before the last product: the backward pass needs nothing of it."""
    return TokenFlops(block.weights - 2.0 * config.hidden_size * config.mlp_width, block.attention)


def _adapters(config: GrowtxConfig, stage: Stage, num_passes: int) -> TokenFlops:
    """Adapters on the frozen blocks. Those that read the lowest one's input send no gradient further down."""
    if stage.lora is None:
        return TokenFlops(0.0, 0.0)
    per_block = num_adapter_parameters(stage.lora, config.hidden_size, config.mlp_width)
    products = num_passes * per_block * stage.num_frozen
    if not stage.train_substrate:
        adapted = sum(target in _READ_THE_INPUT for target in stage.lora.targets)
        products -= len(_READ_THE_INPUT) * config.hidden_size**2 + adapted * config.hidden_size * stage.lora.rank
    return TokenFlops(2.0 * products, 0.0)


MUON_ITERATIONS = 5  # of Newton and Schulz


def optimizer_flops(config: GrowtxConfig, stage: Stage) -> float:
    """Matrix products of one optimizer step, over all workers: none with AdamW.

    Muon takes an m x n matrix (m <= n) through `MUON_ITERATIONS` of X X', its square, and their product with X.
    """
    if stage.train.optimizer == "adamw":
        return 0.0
    width, mlp_width = config.hidden_size, config.mlp_width
    shapes = [(width, width)] * 4 + [(min(width, mlp_width), max(width, mlp_width))] * 2
    products = sum(2 * m * m * n + m**3 for m, n in shapes)
    return 2.0 * MUON_ITERATIONS * products * stage.num_active


def muon_parameters(config: GrowtxConfig, stage: Stage) -> int:
    """Parameters that Muon steps, and AdamW does not."""
    if stage.train.optimizer == "adamw":
        return 0
    return stage.num_active * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.mlp_width)


# What a stage may train: exact counts of active parameters, before anything runs.


def active_parameters(config: GrowtxConfig, stage: Stage) -> int:
    """Parameters that receive gradients in a stage; `config` has the shape, its depth is not used."""
    counts = num_params(config)
    total = stage.num_active * counts.per_block
    if stage.head:
        total += counts.final_norm + counts.head
    if stage.train_substrate:
        total += counts.embedding
    if stage.lora is not None:
        assert config.intermediate_size is not None
        per_block = num_adapter_parameters(stage.lora, config.hidden_size, config.intermediate_size)
        total += stage.num_frozen * per_block
    return total


def check_budget(config: GrowtxConfig, stages: Sequence[Stage], budget: BudgetConfig) -> None:
    """Refuse a plan one of whose stages trains more than the budget.

    Raises:
        BudgetError: naming the first such stage, what it needs and what fits.
    """
    limit = budget.active_parameters
    if limit is None:
        return
    for stage in stages:
        needed = active_parameters(config, stage)
        if needed > limit:
            raise BudgetError(
                f"plan.budget.active_parameters={limit}: stage {stage.index} ({stage.name}) would train "
                f"{needed} parameters, {needed - limit} too many",
                _remedy(config, stage, limit),
            )


def _remedy(config: GrowtxConfig, stage: Stage, limit: int) -> str:
    counts = num_params(config)
    if stage.head and counts.final_norm + counts.head > limit:
        return f"The LM head alone has {counts.head}: raise the budget, or take a smaller vocabulary or hidden_size"
    if stage.train_substrate:
        return f"The substrate has {counts.embedding}: raise the budget, or leave train_substrate out"
    rest = limit - (counts.final_norm + counts.head if stage.head else 0)
    if stage.lora is not None:
        return "Lower lora.rank or active, or raise the budget"
    fits = rest // counts.per_block
    return f"Raise the budget, or let at most {fits} blocks be active" if fits else "Raise the budget"


def count_trainable(model: nn.Module) -> int:
    """Parameters of a built model that require gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# Whether to recompute the frozen prefix in every step, or to keep its activations: counted in FLOPs and bytes.
#
# Recomputing costs a forward pass of the prefix for every window of every step and trial; the cache costs one for
# every window it holds, and T D numbers on disk for each.


MAX_CACHE_COST_RATIO = (
    0.8  # the cache must save at least a fifth of the prefix's FLOPs to pay for writing and reading it
)


@dataclass(frozen=True)
class PrefixPlan:
    """The way to take, why, and what the cache would hold."""

    choice: Literal["recompute", "cache"]
    reason: str
    cache_bytes: int


def plan_prefix(
    config: GrowtxConfig,
    *,
    num_frozen: int,
    num_samples: int,
    num_windows_to_cache: int,
    num_windows_missing: int,
    bytes_per_number: int,
    bytes_available: int,
    num_trials: int = 1,
) -> PrefixPlan:
    """Compare both ways for a stage.

    Args:
        num_frozen: blocks of the prefix.
        num_samples: windows that the stage trains on, repetitions counted.
        num_windows_to_cache: windows whose activations the cache must hold.
        num_windows_missing: those of them that are not cached yet.
        bytes_available: what the cache may take at most.
        num_trials: runs that will use the same cache.
    """
    length = config.max_position_embeddings
    per_window = block_forward_flops(config, length).total * num_frozen * length
    recompute = per_window * num_samples * num_trials
    cache = per_window * num_windows_missing
    size = num_windows_to_cache * length * config.hidden_size * bytes_per_number
    choice: Literal["recompute", "cache"] = "recompute"
    if num_frozen == 0:
        reason = "there is no frozen prefix"
    elif size > bytes_available:
        reason = f"the cache would take {size:,} bytes, but only {bytes_available:,} are allowed"
    elif cache > MAX_CACHE_COST_RATIO * recompute:
        reason = "windows are seen too rarely for the cache to pay off"
    else:
        choice, reason = "cache", f"the cache saves {1 - cache / recompute:.0%} of the prefix's FLOPs"
    return PrefixPlan(choice, reason, size)
