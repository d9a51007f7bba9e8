"""What each stage of a plan will need: parameters, FLOPs, bytes on every worker; before anything runs.

Bytes are those of tensors that live at the same time at the peak of a training step; what a process needs before
it holds a model (Python, libraries, the tokenizer) is not counted.

Symbols: D hidden size, F MLP width, T context, B windows of a worker in one forward pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growtx.growth.flops import (
    active_parameters,
    muon_parameters,
    num_blocks_with_gradients,
    optimizer_flops,
    stage_flops,
)
from growtx.growth.lora import num_adapter_parameters
from growtx.growth.plan import Stage
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import num_params
from growtx.models.loss import LOGIT_BYTES, chunk_rows

LARGEST_BUCKET = 500_000_000  # gradients; as much as DeepSpeed reduces at a time by default


@dataclass(frozen=True)
class Placement:
    """How a stage is spread: what decides the bytes on a worker."""

    num_workers: int
    zero_stage: int
    micro_batch: int
    bf16: bool
    offload_optimizer: bool = False
    activation_checkpointing: bool = False
    sums_in_fp32: bool = False  # gradients of several micro batches in bf16
    gpu_bytes: int | None = None  # all memory of a worker's GPU; None: a CPU


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes on one worker."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class StageForecast:
    """One stage before it runs."""

    stage: Stage
    total_parameters: int
    active_parameters: int
    num_tokens: int
    flops: float
    memory: MemoryForecast


def forecast(
    config: GrowtxConfig, stages: Sequence[Stage], placement: Placement, *, tokens_per_step: int
) -> list[StageForecast]:
    """Forecast every stage.

    Args:
        config: gives the shape, its depth is not used.
        tokens_per_step: of stages that have no batch size of their own.
    """
    return [_stage(config, stage, placement, tokens_per_step) for stage in stages]


def _stage(config: GrowtxConfig, stage: Stage, placement: Placement, tokens_per_step: int) -> StageForecast:
    counts = num_params(config)
    fixed = counts.total - counts.num_blocks * counts.per_block
    total = fixed + stage.num_blocks * counts.per_block
    active = active_parameters(config, stage)
    per_step = stage.train.tokens_per_step(config.max_position_embeddings, default=tokens_per_step)
    num_steps = stage.train.num_steps(per_step)
    num_tokens = num_steps * per_step
    flops = stage_flops(config, stage, activation_checkpointing=placement.activation_checkpointing).total * num_tokens
    flops += optimizer_flops(config, stage) * num_steps
    return StageForecast(stage, total, active, num_tokens, flops, _memory(config, stage, placement, total, active))


def _memory(config: GrowtxConfig, stage: Stage, placement: Placement, total: int, active: int) -> MemoryForecast:
    element = 2 if placement.bf16 else 4
    shards = placement.num_workers
    weights = (total + _num_adapter_parameters(config, stage)) * element // (shards if placement.zero_stage == 3 else 1)
    gradients = _gradient_elements(placement, active) * element
    if placement.sums_in_fp32:  # this worker's shard of them, beside what the current micro batch makes
        gradients = bucket_elements(active) * element + active // shards * 4
    # fp32 master weights and two moments, of what Muon steps only one, sharded by every ZeRO stage
    muon = muon_parameters(config, stage)
    optimizer = 0 if placement.offload_optimizer else (12 * active - 4 * muon) // shards
    # Activations are gone when Muon gathers all matrices and makes their updates.
    activations = max(_activation_bytes(config, stage, placement, element), 8 * muon)
    return MemoryForecast(weights, gradients, optimizer, activations)


def bucket_elements(active: int) -> int:
    """Gradients that are reduced together: all of them, up to half a billion. ZeRO 1 and 2 refuse odd buckets."""
    return min(LARGEST_BUCKET, active + active % 2)


def _gradient_elements(placement: Placement, active: int) -> int:
    """At their peak, in the backward pass: before a bucket is full, nothing of it can be sharded.

    ZeRO 3 keeps its bucket beside the shard for as long as the stage lasts.
    """
    bucket = bucket_elements(active)
    if placement.zero_stage == 3:
        return active // placement.num_workers + bucket
    whole = active if placement.zero_stage == 1 else min(active, bucket)
    return whole + (active - whole) // placement.num_workers


def _num_adapter_parameters(config: GrowtxConfig, stage: Stage) -> int:
    """They exist alongside the blocks until the stage is finalized."""
    if stage.lora is None:
        return 0
    return stage.num_frozen * num_adapter_parameters(stage.lora, config.hidden_size, config.mlp_width)


def _activation_bytes(config: GrowtxConfig, stage: Stage, placement: Placement, element: int) -> int:
    """What autograd keeps of the blocks that gradients pass through, and the larger of the head's and a block's work.

    The head's gradient is summed over chunks in fp32; in bf16 that is a tensor of its own, until the sum is complete.

    A block keeps its input, both normed inputs, q, k and v after rotation, the attention's output, the stream after
    attention (8 D), and the MLP's two wide states (2 F); with checkpointing only its input until its turn comes.
    """
    assert config.intermediate_size is not None
    width, mlp_width = config.hidden_size, config.intermediate_size
    tokens = placement.micro_batch * config.max_position_embeddings
    kept = 8 * width + 2 * mlp_width
    through = num_blocks_with_gradients(stage)
    # A frozen block between others keeps no normed inputs and one wide state: its weights need no gradient.
    passed = 0 if stage.lora or stage.train_substrate else through - stage.num_active
    spared = tokens * passed * (2 * width + mlp_width) * element
    ends = tokens * 3 * width * element  # final norm's input and output, the gradient of the latter
    if config.substrate_reinjection:  # its vectors are kept once, for all blocks
        ends += tokens * width * element
    rows = min(chunk_rows(config.vocab_size, placement.gpu_bytes), tokens)
    chunk = rows * config.vocab_size * (LOGIT_BYTES if element == 2 else 8)  # logits, softmax, copies in bf16
    if element == 2:
        chunk += 4 * num_params(config).head
    wide = 2 * mlp_width + 3 * width if stage.lora else mlp_width  # gradients in the block that is running
    running = tokens * wide * element if through else 0
    if placement.activation_checkpointing:
        inputs = tokens * through * width * element
        return inputs + max(chunk + ends, (tokens * kept * element if through else 0) + running)
    return tokens * through * kept * element - spared + max(chunk + ends, running)
