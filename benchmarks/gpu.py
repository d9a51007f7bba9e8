"""What one GPU makes of the two places where training spends its time: the LM head's loss, and a whole step of a stage.

Every figure stands beside what the GPU could do: the FLOPs of the work over its peak. Where there is no GPU, the same
code runs on the CPU in small sizes, so that it is tested; such figures mean nothing.

Shapes: R rows (positions), D hidden size, V vocabulary, B micro batch, T positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import median

import torch

from benchmarks.growth import Shape, growing_flops, random_model, stage_of
from growtx.growth.forecast import forecast
from growtx.growth.freezing import prepare_for_stage
from growtx.models.configuration import GrowtxConfig
from growtx.models.loss import LMHead, memory_of_gpu
from growtx.train.distributed import has_gpu, worker_device
from growtx.train.engine import TrainEngine
from growtx.train.kernels import set_kernels, use_bf16
from growtx.train.memory import peak_memory_bytes, placement, reset_peak_memory
from growtx.train.settings import TrainingConfig

HEADS = ((1024, 65_536), (4096, 131_072))
HEAD_ROWS, CHUNKS = 8192, (256, 1024, 4096)
STEPS = (
    Shape(hidden_size=1024, num_heads=16, vocab_size=65_536, context_length=1024, micro_batch=8, max_depth=12),
    Shape(hidden_size=4096, num_heads=32, vocab_size=131_072, context_length=1024, micro_batch=4, max_depth=4),
)
WAYS: dict[str, dict[str, bool]] = {
    "plain": {},
    "compiled": {"compile": True},
    "checkpointed": {"activation_checkpointing": True},
}


@dataclass(frozen=True)
class Figure:
    """One line: what was computed, how long it took, and how many FLOPs that is a second.

    Attributes:
        loss: of what was computed, in nats a token: equal for all ways of a piece of work.
        peak_bytes: most memory in use; forecast_bytes: what `growtx plan` says; None: nothing is forecast.
    """

    work: str
    way: str
    seconds: float
    flops: float
    loss: float
    peak_bytes: int
    forecast_bytes: int | None = None

    @property
    def tflops(self) -> float:
        return self.flops / self.seconds / 1e12


def head_figures(hidden_size: int, vocab_size: int, *, num_rows: int, chunks: tuple[int, ...]) -> Iterator[Figure]:
    """The loss of a head and its gradients, by rows whose logits exist at once, in one piece, and by liger's kernel."""
    device, dtype = worker_device(), torch.bfloat16 if has_gpu() else torch.float32
    torch.manual_seed(0)
    head = LMHead(GrowtxConfig(hidden_size=hidden_size, vocab_size=vocab_size, num_attention_heads=2)).to(device, dtype)
    hidden_RD = torch.randn(num_rows, hidden_size, device=device, dtype=dtype, requires_grad=True)
    targets_R = torch.randint(0, vocab_size, (num_rows,), device=device)
    ways: dict[str, tuple[str, int | None]] = {f"{rows} rows": ("chunked", rows) for rows in chunks}
    ways |= {"as chosen": ("chunked", None), "plain": ("plain", None)}
    if has_gpu() and find_spec("liger_kernel"):
        ways["liger"] = ("liger", None)
    for way, (kernel, chunk) in ways.items():

        def step(kernel: str = kernel, chunk: int | None = chunk) -> torch.Tensor:
            loss: torch.Tensor = head(hidden_RD, targets=targets_R, kernel=kernel, chunk=chunk)[0]
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        seconds, loss, peak = _measured(step)
        flops = 6.0 * num_rows * hidden_size * vocab_size
        yield Figure(f"head {hidden_size:,} x {vocab_size:,}", way, seconds, flops, loss / num_rows, peak)


def step_figures(shape: Shape, ways: Sequence[str] = tuple(WAYS)) -> Iterator[Figure]:
    """A step that trains the newest block and the head of the deepest model; a process group has to be there."""
    depth, stage = shape.max_depth, stage_of(shape.max_depth, 1)
    num_tokens = shape.micro_batch * shape.context_length
    flops = float(growing_flops(shape.config(depth), shape.context_length, num_new_blocks=1).total * num_tokens)
    for way in ways:
        settings = TrainingConfig(global_batch_size=shape.micro_batch, **WAYS[way])  # type: ignore[arg-type]
        torch.manual_seed(0)
        model = random_model(shape, depth)
        set_kernels(model, settings, worker_device())
        wrapped = prepare_for_stage(model, stage, seed=0)
        wrapped.train()
        engine = TrainEngine(wrapped, stage, settings)
        generator = torch.Generator().manual_seed(0)
        tokens_BT = torch.randint(
            0, shape.vocab_size, (shape.micro_batch, shape.context_length), generator=generator
        ).to(worker_device())
        batch = {"input_ids": tokens_BT, "labels": tokens_BT}

        def step(engine: TrainEngine = engine, batch: dict[str, torch.Tensor] = batch) -> torch.Tensor:
            return engine.step([batch], num_tokens - shape.micro_batch, 1e-6)[0]

        seconds, loss, peak = _measured(step)
        engine.close()
        (row,) = forecast(
            shape.config(depth),
            [stage],
            placement(settings, num_workers=1, bf16=use_bf16(settings), gpu_bytes=memory_of_gpu(worker_device())),
            tokens_per_step=num_tokens,
        )
        yield Figure(
            f"step, D={shape.hidden_size:,}, depth {depth}",
            way,
            seconds,
            flops,
            loss / (num_tokens - shape.micro_batch),
            peak,
            row.memory.total,
        )
        torch.compiler.reset()


def card() -> str:
    """The name of the GPU, or that there is none."""
    return torch.cuda.get_device_name() if has_gpu() else "no GPU"


def small(shape: Shape) -> Shape:
    """A shape whose code paths are those of a large one, for machines without a GPU."""
    return replace(shape, hidden_size=32, num_heads=2, vocab_size=300, context_length=16, micro_batch=2, max_depth=2)


def _measured(step: Callable[[], torch.Tensor], rounds: int = 5) -> tuple[float, float, int]:
    """Median of seconds, the first loss, and the most memory in use."""
    reset_peak_memory()
    first = float(step().detach())
    step()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        float(step().detach())  # which waits for the GPU
        times.append(time.perf_counter() - start)
    return median(times), first, peak_memory_bytes()
