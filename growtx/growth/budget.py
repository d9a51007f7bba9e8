"""What a stage may train: exact counts of active parameters, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from growtx.exceptions import BudgetError
from growtx.growth.lora import num_adapter_parameters
from growtx.growth.plan import BudgetConfig, Stage
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import num_params


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
