"""What growing costs: time and memory of a stage's step against the monolithic step, beside their bounds.

One process, one thread, no Ray: what a worker does between two messages. Ways are run in turn, and what is reported
is the median over rounds of the ratio within a round, because machines change their speed from minute to minute.

Shapes: B micro batch, T positions, D hidden size.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from growtx.growth.assembly import SUBSTRATE_KEY, block_prefix, build_model, new_head
from growtx.growth.freezing import prepare_for_stage
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.models.block import GrowtxBlock
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import growing_flops, monolithic_flops
from growtx.train.engine import Engine
from growtx.train.memory import peak_memory_bytes, reset_peak_memory
from growtx.train.settings import TrainingConfig

Step = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """What is measured; the defaults are those that the project's targets are stated for."""

    hidden_size: int = 256
    num_heads: int = 4
    vocab_size: int = 8192
    context_length: int = 256
    micro_batch: int = 4
    max_depth: int = 12

    def config(self, depth: int) -> GrowtxConfig:
        return GrowtxConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=depth,
            num_attention_heads=self.num_heads,
            max_position_embeddings=self.context_length,
            num_layers_for_init=self.max_depth,
        )


@dataclass(frozen=True)
class Ratio:
    """One line of the result: a way at a depth, against the monolithic step of the same depth."""

    depth: int
    way: str
    seconds: float
    ratio: float
    bound: float


def build(shape: Shape, depth: int) -> GrowtxForCausalLM:
    """A model of random weights."""
    config = shape.config(depth)
    state = new_head(config, seed=0) | {SUBSTRATE_KEY: torch.randn(shape.vocab_size, shape.hidden_size)}
    for index in range(depth):
        state |= {
            block_prefix(index) + name: tensor for name, tensor in GrowtxBlock(config, index).state_dict().items()
        }
    return build_model(config, state)


def stage_of(depth: int, num_new: int) -> Stage:
    """The stage that brings a model to `depth` by `num_new` blocks."""
    stages: list[dict[str, Any]] = (
        [{"add": num_new}] if depth == num_new else [{"add": depth - num_new}, {"add": num_new}]
    )
    return resolve(PlanConfig.model_validate({"stages": stages, "train": {"steps": 10**6}}))[-1]


def engine_step(shape: Shape, depth: int, num_new: int, *, cached: bool) -> Step:
    """One optimizer step of a stage on fixed random tokens."""
    stage = stage_of(depth, num_new)
    model = build(shape, depth)
    wrapped = prepare_for_stage(model, stage, seed=0)
    wrapped.train()
    settings = TrainingConfig(global_batch_size=shape.micro_batch)
    engine = Engine(wrapped, stage, settings)
    tokens_BT = torch.randint(0, shape.vocab_size, (shape.micro_batch, shape.context_length))
    batch: dict[str, Any] = {"labels": tokens_BT}
    if cached:
        states_BTD = model.forward_prefix(tokens_BT, stage.num_frozen)
        batch |= {"prefix_hidden_states": states_BTD, "first_block": stage.num_frozen}
    else:
        batch["input_ids"] = tokens_BT
    num_targets = shape.micro_batch * (shape.context_length - 1)
    return lambda: engine.step([batch], num_targets, 1.0)


def trainer_step(shape: Shape, depth: int, num_new: int) -> Step:
    """The same step by a plain Hugging Face Trainer on a model with frozen layers, ten at a time."""
    from transformers import Trainer, TrainingArguments

    model = build(shape, depth)
    prepare_for_stage(model, stage_of(depth, num_new), seed=0)
    tokens_BT = torch.randint(0, shape.vocab_size, (shape.micro_batch, shape.context_length))
    rows = [{"input_ids": row, "labels": row} for row in tokens_BT]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.micro_batch,
        max_steps=_TRAINER_STEPS,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows * _TRAINER_STEPS)
    return trainer.train  # type: ignore[no-any-return]


_TRAINER_STEPS = 10


def step_ratios(shape: Shape, depths: list[int], *, rounds: int = 7, num_new: int = 1) -> Iterator[Ratio]:
    """Time of a growing step against the monolithic one, at each depth."""
    with single_process():
        for depth in depths:
            ways: dict[str, Step] = {
                "monolithic": engine_step(shape, depth, depth, cached=False),
                "recompute": engine_step(shape, depth, num_new, cached=False),
                "cache": engine_step(shape, depth, num_new, cached=True),
                "HF Trainer, frozen": trainer_step(shape, depth, num_new),
            }
            yield from _compare(shape, depth, num_new, ways, rounds)


def _compare(shape: Shape, depth: int, num_new: int, ways: dict[str, Step], rounds: int) -> Iterator[Ratio]:
    for step in ways.values():
        step()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, step in ways.items():
            start = time.perf_counter()
            for _ in range(1 if way.startswith("HF") else 2):
                step()
            elapsed = time.perf_counter() - start
            seconds[way].append(elapsed / (_TRAINER_STEPS if way.startswith("HF") else 2))
    bounds = _bounds(shape, depth, num_new)
    for way, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, seconds["monolithic"], strict=True)]
        yield Ratio(depth, way, statistics.median(values), statistics.median(ratios), bounds[way])


def _bounds(shape: Shape, depth: int, num_new: int) -> dict[str, float]:
    """FLOPs of each way over those of the monolithic step."""
    config, length = shape.config(depth), shape.context_length
    whole = monolithic_flops(config, length).total
    recompute = growing_flops(config, length, num_new_blocks=num_new).total / whole
    cached = growing_flops(config, length, num_new_blocks=num_new, prefix_cached=True).total / whole
    return {"monolithic": 1.0, "recompute": recompute, "cache": cached, "HF Trainer, frozen": recompute}


@dataclass(frozen=True)
class Memory:
    """Peak memory of a process that trains, above what it had before the model was built."""

    depth: int
    way: str
    peak_bytes: int
    frozen_bytes: int


def peak_memory(shape: Shape, depth: int, way: str) -> Memory:
    """Measure in a process of its own, because memory that was used once is not always given back."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_memory, (shape, depth, way))


def _measure_memory(shape: Shape, depth: int, way: str) -> Memory:
    with single_process():
        engine_step(Shape(hidden_size=32, vocab_size=64, context_length=16, num_heads=2), 1, 1, cached=False)()
        reset_peak_memory()
        before = peak_memory_bytes()
        num_new = depth if way == "monolithic" else 1
        step = engine_step(shape, depth, num_new, cached=way == "cache")
        for _ in range(3):
            step()
        frozen = sum(p.numel() * p.element_size() for p in build(shape, depth - num_new).model.layers.parameters())
        return Memory(depth, way, peak_memory_bytes() - before, frozen)


@contextmanager
def single_process() -> Iterator[None]:
    """A process group of one, on one thread."""
    torch.set_num_threads(1)
    created = not dist.is_initialized()
    if created:
        os.environ.setdefault("LOCAL_RANK", "0")
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        meeting_point = Path(tempfile.mkdtemp()) / "ranks"
        dist.init_process_group("gloo", init_method=meeting_point.as_uri(), rank=0, world_size=1)
    try:
        yield
    finally:
        if created:
            dist.destroy_process_group()
