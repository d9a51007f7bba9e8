"""What the growth benchmark measures: models of a shape, and a plain Hugging Face Trainer on the same model.

Shapes: B micro batch, T positions.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from growtx.growth.assembly import SUBSTRATE_KEY, block_prefix, build_model, new_head
from growtx.growth.freezing import prepare_for_stage
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.models.block import GrowtxBlock
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.configuration import GrowtxConfig


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


class PlainTrainer:
    """A Trainer on a model with frozen layers, in a process of its own: it must not see our process group."""

    def __init__(self, shape: Shape, depth: int, num_new: int) -> None:
        context = get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve_trainer, args=(there, shape, depth, num_new), daemon=True)

    def __enter__(self) -> PlainTrainer:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def seconds_per_step(self) -> float:
        """Train some steps and return the mean time of one, the Trainer's own start-up left out."""
        self._here.send(None)
        return float(self._here.recv())


def _serve_trainer(connection: Any, shape: Shape, depth: int, num_new: int) -> None:
    outside_groups()
    model = frozen_model(shape, depth, num_new)
    while True:
        connection.recv()
        connection.send(train_plainly(model, shape))


def outside_groups() -> None:
    """Let this process, a child of ours, know of no process group and use one thread."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def frozen_model(shape: Shape, depth: int, num_new: int) -> GrowtxForCausalLM:
    """A model whose newest blocks and head alone require gradients."""
    model = build(shape, depth)
    prepare_for_stage(model, stage_of(depth, num_new), seed=0)
    return model


def train_plainly(model: GrowtxForCausalLM, shape: Shape, num_steps: int = 4) -> float:
    """Train some steps by a Trainer; seconds of one of them, its own start-up left out."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    starts: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            starts.append(time.perf_counter())

    tokens_BT = torch.randint(0, shape.vocab_size, (shape.micro_batch, shape.context_length))
    rows = [{"input_ids": row, "labels": row} for row in tokens_BT]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.micro_batch,
        max_steps=num_steps,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows * num_steps, callbacks=[Clock()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return (starts[-1] - starts[0]) / (num_steps - 1)
