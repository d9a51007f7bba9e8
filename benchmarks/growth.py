"""What growing costs: time and memory of a stage's step relative to the monolithic step, with their bounds.

One process, one thread, no Ray: what a worker does between two messages. The ways are run in turn, and the
median over rounds of the ratio within a round is reported, because machine speed varies from minute to minute.

Shapes: B micro batch, T positions, D hidden size.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist

from growtx.growth.assembly import SUBSTRATE_KEY, block_prefix, build_model, new_head
from growtx.growth.forecast import Placement, forecast
from growtx.growth.freezing import prepare_for_stage
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.models.causal_lm import GrowtxBlock, GrowtxForCausalLM
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import TokenFlops, block_forward_flops, head_forward_flops, monolithic_flops, num_params
from growtx.train.distributed import alone, use_device
from growtx.train.engine import TrainEngine
from growtx.train.memory import peak_memory_bytes, reset_peak_memory
from growtx.train.settings import TrainingConfig

# What the growth benchmark measures: models of a shape, and a plain Hugging Face Trainer on the same model.
#
# Shapes: B micro batch, T positions.


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


def random_model(shape: Shape, depth: int) -> GrowtxForCausalLM:
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
        """Train some steps and return the mean time of one, excluding the Trainer's start-up."""
        self._here.send(None)
        return float(self._here.recv())


def _serve_trainer(connection: Any, shape: Shape, depth: int, num_new: int) -> None:
    outside_groups()
    model = frozen_model(shape, depth, num_new)
    while True:
        connection.recv()
        connection.send(train_plainly(model, shape))


def outside_groups() -> None:
    """Let this child process see no process group, and use one thread."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def frozen_model(shape: Shape, depth: int, num_new: int) -> GrowtxForCausalLM:
    """A model whose newest blocks and head alone require gradients."""
    model = random_model(shape, depth)
    prepare_for_stage(model, stage_of(depth, num_new), seed=0)
    return model


def train_plainly(model: GrowtxForCausalLM, shape: Shape, num_steps: int = 4) -> float:
    """Train some steps with a Trainer; returns the seconds of one, excluding its start-up."""
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


Step = Callable[[], torch.Tensor]
Way = Callable[[], float]  # seconds per step, measured now
STEPS_PER_ROUND = 3
PLAIN = "HF Trainer, frozen"


@dataclass(frozen=True)
class Ratio:
    """One line of the result: a way at a depth, against the monolithic step of the same depth."""

    depth: int
    way: str
    seconds: float
    ratio: float
    bound: float


def engine_step(shape: Shape, depth: int, num_new: int, *, cached: bool) -> Step:
    """One optimizer step of a stage on fixed random tokens."""
    stage = stage_of(depth, num_new)
    model = random_model(shape, depth)
    wrapped = prepare_for_stage(model, stage, seed=0)
    wrapped.train()
    settings = TrainingConfig(global_batch_size=shape.micro_batch)
    engine = TrainEngine(wrapped, stage, settings)
    tokens_BT = torch.randint(0, shape.vocab_size, (shape.micro_batch, shape.context_length)).to(engine.device)
    batch: dict[str, Any] = {"labels": tokens_BT}
    if cached:
        states_BTD = model.forward_prefix(tokens_BT, stage.num_frozen)
        batch |= {"prefix_hidden_states": states_BTD, "first_block": stage.num_frozen}
    else:
        batch["input_ids"] = tokens_BT
    num_targets = shape.micro_batch * (shape.context_length - 1)
    return lambda: engine.step([batch], num_targets, 1.0)


def step_ratios(shape: Shape, depths: list[int], *, rounds: int = 7, num_new: int = 1) -> Iterator[Ratio]:
    """Time of a growing step against the monolithic one, at each depth."""
    with single_process():
        for depth in depths:
            with PlainTrainer(shape, depth, num_new) as trainer:
                ways: dict[str, Way] = {
                    "monolithic": _timed(engine_step(shape, depth, depth, cached=False)),
                    "recompute": _timed(engine_step(shape, depth, num_new, cached=False)),
                    "cache": _timed(engine_step(shape, depth, num_new, cached=True)),
                    PLAIN: trainer.seconds_per_step,
                }
                yield from _compare(shape, depth, num_new, ways, rounds)


def _timed(step: Step) -> Way:
    def seconds_per_step() -> float:
        start = time.perf_counter()
        totals = [step() for _ in range(STEPS_PER_ROUND)]
        totals[-1].cpu()  # waits for the GPU
        return (time.perf_counter() - start) / STEPS_PER_ROUND

    return seconds_per_step


def _compare(shape: Shape, depth: int, num_new: int, ways: dict[str, Way], rounds: int) -> Iterator[Ratio]:
    for way in ways.values():
        way()  # warm up
    timings = [{name: way() for name, way in ways.items()} for _ in range(rounds)]
    bounds = _bounds(shape, depth, num_new)
    for name in ways:
        ratios = [timing[name] / timing["monolithic"] for timing in timings]
        seconds = statistics.median(timing[name] for timing in timings)
        yield Ratio(depth, name, seconds, statistics.median(ratios), bounds[name])


def growing_flops(
    config: GrowtxConfig, context_length: int, *, num_new_blocks: int, prefix_cached: bool = False
) -> TokenFlops:
    """FLOPs per token of a step of a stage whose newest `num_new_blocks` blocks and head train: the published formula.

    2 F b + 6 (K b + h) while the F blocks of the prefix are recomputed, 6 (K b + h) on their cached activations.
    `growtx.growth.flops.stage_flops` counts every stage product by product and agrees where this one applies.
    """
    block = block_forward_flops(config, context_length)
    trained = (block * num_new_blocks + head_forward_flops(config)) * 3
    if prefix_cached:
        return trained
    return trained + block * (config.num_hidden_layers - num_new_blocks)


def _bounds(shape: Shape, depth: int, num_new: int) -> dict[str, float]:
    """FLOPs of each way over those of the monolithic step."""
    config, length = shape.config(depth), shape.context_length
    whole = monolithic_flops(config, length).total
    recompute = growing_flops(config, length, num_new_blocks=num_new).total / whole
    cached = growing_flops(config, length, num_new_blocks=num_new, prefix_cached=True).total / whole
    return {"monolithic": 1.0, "recompute": recompute, "cache": cached, PLAIN: recompute}


@dataclass(frozen=True)
class Memory:
    """Peak memory of a process that trains, above what it had before the model was built.

    Attributes:
        ratio: of the monolithic peak at the same depth.
        frozen_bytes: weights of the frozen blocks.
        forecast_bytes: what `growtx plan` forecasts for such a stage; None for the Trainer.
    """

    depth: int
    way: str
    peak_bytes: int
    ratio: float
    frozen_bytes: int
    forecast_bytes: int | None


def peak_memory(shape: Shape, depths: Sequence[int]) -> Iterator[Memory]:
    """Each way at each depth in a process of its own: used memory is not always given back."""
    for depth in depths:
        peaks: dict[str, int] = {}
        for way in ("monolithic", "recompute", "cache", PLAIN):
            with get_context("spawn").Pool(1) as pool:
                peaks[way] = pool.apply(_measure_memory, (shape, depth, way))
            stage, config = stage_of(depth, depth if way == "monolithic" else 1), shape.config(depth)
            placement = Placement(num_workers=1, zero_stage=1, micro_batch=shape.micro_batch, bf16=False)
            (row,) = forecast(config, [stage], placement, tokens_per_step=shape.micro_batch * shape.context_length)
            yield Memory(
                depth=depth,
                way=way,
                peak_bytes=peaks[way],
                ratio=peaks[way] / peaks["monolithic"],
                frozen_bytes=4 * stage.num_frozen * num_params(config).per_block,
                forecast_bytes=None if way == PLAIN else row.memory.total,
            )


def _measure_memory(shape: Shape, depth: int, way: str) -> int:
    if way == PLAIN:
        outside_groups()
    with nullcontext() if way == PLAIN else single_process():
        _train_some(Shape(hidden_size=32, vocab_size=64, context_length=16, num_heads=2), 1, way)
        reset_peak_memory()
        before = peak_memory_bytes()
        _train_some(shape, depth, way)
        return peak_memory_bytes() - before


def _train_some(shape: Shape, depth: int, way: str) -> None:
    if way == PLAIN:
        train_plainly(frozen_model(shape, depth, 1), shape)
        return
    step = engine_step(shape, depth, depth if way == "monolithic" else 1, cached=way == "cache")
    for _ in range(3):
        step()


@contextmanager
def single_process() -> Iterator[None]:
    """A process group of one, on one thread, on the GPU if there is one; it ends here if it began here."""
    torch.set_num_threads(1)
    created, use_gpu = not dist.is_initialized(), torch.cuda.is_available()
    with alone(use_gpu=use_gpu):
        use_device(use_gpu=use_gpu)
        yield
    if created:
        dist.destroy_process_group()
