"""`growtx plan`: what each stage of a configuration will cost, computed from the configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from rich.table import Table

from growtx.config import build_config
from growtx.data.tokenizer import COMPACT_SIZE, PUBLISHED_SIZES, TokenizerConfig, load_tokenizer
from growtx.exceptions import BudgetError, ConfigError
from growtx.growth.flops import MAX_CACHE_COST_RATIO, check_budget, plan_prefix
from growtx.growth.forecast import LARGEST_BUCKET, Placement, StageForecast, forecast
from growtx.growth.plan import LoraConfig, Stage, resolve
from growtx.growth.scaling import resolve_matched
from growtx.growth.solver import GIB, SolverLimits, propose
from growtx.models.configuration import GrowtxConfig
from growtx.run.config import DEFAULT_RUN_PRESET, RunConfig, load_run_config
from growtx.train.memory import placement

MIB = 2**20
COMMON_GPU_GIB = 80  # where resources.accelerator does not say


def placement_of(config: RunConfig) -> Placement:
    """How the configuration spreads a stage over its workers."""
    training, resources = config.training, config.resources
    memory_gib = resources.accelerator.memory_gib if resources.accelerator else COMMON_GPU_GIB
    return placement(
        training,
        num_workers=resources.num_workers,
        bf16=training.uses_bf16(has_gpu=resources.use_gpu),
        gpu_bytes=int(memory_gib * GIB) if resources.use_gpu else None,
    )


def planned_architecture(config: RunConfig) -> GrowtxConfig:
    """The finished model's shape, without building a tokenizer or a substrate."""
    vocab_size = _vocab_size(config.tokenizer)
    width = config.substrate.stored_width(vocab_size, config.model.hidden_size)
    depth = resolve(config.plan)[-1].num_blocks
    return config.model.architecture(
        vocab_size=vocab_size,
        num_blocks=depth,
        final_num_blocks=depth,
        substrate_width=width,
        expansion="none" if width == config.model.hidden_size else config.substrate.layout,
    )


def _vocab_size(tokenizer: TokenizerConfig) -> int:
    if tokenizer.path is not None:
        return len(load_tokenizer(tokenizer.path))
    return tokenizer.vocab_size or PUBLISHED_SIZES.get(tokenizer.family, COMPACT_SIZE)


def forecast_tables(
    config: RunConfig, *, data_tokens: int | None = None, num_trials: int = 1
) -> tuple[Table, Table, Table]:
    """Tables of every stage's work, of its bytes per worker and of its prefix; refuses a plan over its budget.

    Args:
        data_tokens: tokens in the training data, which determine how often a window is repeated; None: never.
        num_trials: runs that will share a prefix cache.

    Raises:
        BudgetError: a stage would train more than the budget.
    """
    architecture = planned_architecture(config)
    stages = resolve_matched(config.plan, architecture, tokens_per_step=config.tokens_per_step)
    check_budget(architecture, stages, config.plan.budget)
    rows = forecast(architecture, stages, placement_of(config), tokens_per_step=config.tokens_per_step)
    prefix = _prefix_table(config, architecture, stages, data_tokens, num_trials)
    return _work_table(config, rows), _memory_table(config, rows), prefix


def _work_table(config: RunConfig, rows: list[StageForecast]) -> Table:
    table = Table(
        title=f"Plan {config.name}", title_justify="left", caption=_work_model(config), caption_justify="left"
    )
    for column in ("stage", "blocks", "active", "total", "tokens", "FLOPs", "hours"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.stage.index} {row.stage.name}",
            str(row.stage.num_blocks),
            _millions(row.active_parameters),
            _millions(row.total_parameters),
            _millions(row.num_tokens),
            f"{row.flops:.2e}",
            _hours(config, row),
        )
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _hours(config: RunConfig, row: StageForecast) -> str:
    """Time at the assumed utilisation of the accelerator that the configuration is written for."""
    accelerator = config.resources.accelerator
    if accelerator is None:
        return "-"
    num_workers = row.stage.num_workers or config.resources.num_workers
    speed = accelerator.tflops * 1e12 * accelerator.utilisation * num_workers
    return f"{row.flops / speed / 3600:,.1f}"


def _work_model(config: RunConfig) -> str:
    """The caption that explains the FLOPs and the hours."""
    counted = "FLOPs: matrix products of the forward and backward passes" + (
        " and of Muon" if _has_muon(config) else ""
    )
    if config.training.activation_checkpointing:
        counted += ", forward passes counted twice where activations are recomputed"
    accelerator = config.resources.accelerator
    if accelerator is None:
        return f"{counted}. Hours: only if resources.accelerator is set."
    speed = f"{accelerator.utilisation:.0%} of {accelerator.tflops:g} TFLOPs on each worker"
    return f"{counted}. Hours: at {speed}, an assumption (resources.accelerator.utilisation)."


def _has_muon(config: RunConfig) -> bool:
    return any(stage.train.optimizer == "muon" for stage in resolve(config.plan))


def _memory_model(config: RunConfig) -> str:
    """What each column of the memory table is made of; the terms are those of `growth.forecast`."""
    spread, training = placement_of(config), config.training
    element = f"{2 if spread.bf16 else 4} bytes"

    def shared(from_zero_stage: int) -> str:
        is_shared = spread.num_workers > 1 and spread.zero_stage >= from_zero_stage
        return f" / {spread.num_workers} workers" if is_shared else ""

    optimizer = "in the host's memory" if training.offload_optimizer else f"12 bytes x active{shared(1)}"
    moments = "two moments; one, so 8 bytes, where Muon steps" if _has_muon(config) else "two moments"
    how = "only the blocks' inputs kept, the rest recomputed" if training.activation_checkpointing else "all kept"
    bucket = (
        f" Up to {LARGEST_BUCKET:,} of them are held whole on each worker until they are reduced." if shared(2) else ""
    )
    adapters = " LoRA adapters come on top." if any(stage.lora for stage in config.plan.stage_configs()) else ""
    windows = f"{spread.micro_batch} x {config.model.context_length} tokens at a time"
    return (
        f"Weights: {element} x total{shared(3)}.{adapters} Gradients: {element} x active{shared(2)}.{bucket} "
        f"Optimizer: {optimizer} (fp32 weights, {moments}). Activations: {windows}, {how}, and the larger of a "
        "block's and the head's work. "
        "In addition, every process needs memory for Python, its libraries and the GPU driver."
    )


def _memory_table(config: RunConfig, rows: list[StageForecast]) -> Table:
    accelerator = config.resources.accelerator
    where = f"{config.resources.num_workers} workers, ZeRO {placement_of(config).zero_stage}"
    title = f"MiB on each of {where}" + (f", {accelerator.name}: {accelerator.memory_gib:g} GiB" if accelerator else "")
    table = Table(title=title, title_justify="left", caption=_memory_model(config), caption_justify="left")
    for column in ("stage", "weights", "gradients", "optimizer", "activations", "sum"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        memory = row.memory
        if accelerator is not None and memory.total > accelerator.memory_gib * GIB:
            raise BudgetError(
                f"stage {row.stage.index} needs {memory.total / GIB:.1f} GiB on each worker, "
                f"but {accelerator.name} has only {accelerator.memory_gib:g}",
                "Raise training.zero_stage or the workers, lower training.micro_batch_size, or set "
                "training.activation_checkpointing or training.offload_optimizer",
            )
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
        table.add_row(f"{row.stage.index} {row.stage.name}", *(f"{part / MIB:,.1f}" for part in parts))
    return table


def _prefix_table(
    config: RunConfig, architecture: GrowtxConfig, stages: Sequence[Stage], data_tokens: int | None, num_trials: int
) -> Table:
    """Recompute or cache: the choice of `training.prefix=auto`, the cache's bytes, and up to where it pays off."""
    seen = "each window seen once" if data_tokens is None else f"{data_tokens:,} tokens of data"
    table = Table(title=f"Frozen prefix, training.prefix={config.training.prefix}: {seen}", title_justify="left")
    for column in ("stage", "auto", "MiB of cache", "pays off up to (windows)", "why"):
        table.add_column(column, justify="left" if column in ("auto", "why") else "right", no_wrap=column != "why")
    precision = 2 if placement_of(config).bf16 else 4
    for stage in stages:
        name = f"{stage.index} {stage.name}"
        if stage.lora is not None or stage.train_substrate:
            table.add_row(name, "recompute", "-", "-", "the prefix changes in this stage")
            continue
        per_step = stage.train.tokens_per_step(config.model.context_length, default=config.tokens_per_step)
        samples = stage.train.num_steps(per_step) * per_step // config.model.context_length
        windows = min(samples, max(1, data_tokens // config.model.context_length)) if data_tokens else samples
        plan = plan_prefix(
            architecture,
            num_frozen=stage.num_prefix,
            num_samples=samples,
            num_windows_to_cache=windows,
            num_windows_missing=windows,
            bytes_per_number=precision,
            bytes_available=int(config.training.prefix_cache_gib * GIB),
            num_trials=num_trials,
        )
        limit = f"{int(MAX_CACHE_COST_RATIO * samples * num_trials):,}" if stage.num_prefix else "-"
        table.add_row(name, plan.choice, f"{plan.cache_bytes / MIB:,.1f}", limit, plan.reason)
    return table


# `growtx plan --budget / --memory-gib`: a preset's plan replaced by one that the budget solver proposes.


_ENDS = ("tokens", "steps")


def solved_preset(
    preset: str | None,
    overrides: list[str],
    *,
    budget: int | None = None,
    memory_gib: float | None = None,
    num_blocks: int | None = None,
) -> tuple[RunConfig, str]:
    """The configuration with a proposed plan, and the YAML of a preset that `growtx grow` takes as it is.

    Args:
        num_blocks: target depth; None: that of the preset's plan.

    Raises:
        BudgetError: nothing fits; ConfigError: a limit is not positive.
    """
    if (budget is not None and budget < 1) or (memory_gib is not None and not memory_gib > 0) or (num_blocks or 1) < 1:
        raise ConfigError("--budget, --memory-gib and --blocks must be positive", "Give a positive number")
    config = load_run_config(preset, overrides)
    depth = num_blocks or resolve(config.plan)[-1].num_blocks
    proposal = propose(
        planned_architecture(config),
        depth,
        SolverLimits(budget, round(memory_gib * GIB) if memory_gib else None),
        placement_of(config),
        train=_train(config),
        tokens_per_step=config.tokens_per_step,
        lora=config.plan.grow.lora if config.plan.grow else LoraConfig(),
    )
    plan = {"grow": None, "init": config.plan.init, **_written(proposal.plan)}
    training = _changes(config, proposal.placement)
    tree = config.model_dump(mode="json")
    solved = build_config(RunConfig, {**tree, "plan": plan, "training": {**tree["training"], **training}})
    written = {"extends": preset or DEFAULT_RUN_PRESET, "plan": plan, **({"training": training} if training else {})}
    return solved, str(yaml.safe_dump(written, sort_keys=False, width=110))


def _train(config: RunConfig) -> dict[str, Any]:
    """The defaults of the preset's stages; a plan that divides up its tokens gives each as many as its last one."""
    train = dict(config.plan.train)
    if not any(train.get(end) for end in _ENDS):
        last = resolve(config.plan)[-1].train
        train |= {end: getattr(last, end) for end in _ENDS if getattr(last, end)}
    return train


def _written(plan: Any) -> dict[str, Any]:
    """The plan in its shortest written form."""
    return {
        "budget": plan.budget.model_dump(mode="json"),
        "train": plan.train,
        "stages": [stage.model_dump(mode="json", exclude_defaults=True) or {"add": 1} for stage in plan.stages],
    }


def _changes(config: RunConfig, placement: Any) -> dict[str, Any]:
    """Settings of `training` that the proposal has to change."""
    before = placement_of(config)
    wanted = {
        "zero_stage": (before.zero_stage, placement.zero_stage),
        "micro_batch_size": (before.micro_batch, placement.micro_batch),
        "activation_checkpointing": (before.activation_checkpointing, placement.activation_checkpointing),
    }
    return {key: new for key, (old, new) in wanted.items() if old != new}
