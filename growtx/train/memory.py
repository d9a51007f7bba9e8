"""Peak memory of one stage in this process: the accelerator's where there is one, else the host's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growtx.growth.forecast import Placement, forecast
from growtx.growth.plan import Stage
from growtx.models.configuration import GrowtxConfig
from growtx.models.loss import memory_of_gpu
from growtx.train.distributed import has_gpu, worker_device
from growtx.train.kernels import use_bf16
from growtx.train.settings import TrainingConfig


def reset_peak_memory() -> None:
    """Start a new measurement; stages share a process, so the peak of an earlier one must not count."""
    if has_gpu():
        torch.cuda.reset_peak_memory_stats()
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # not Linux, or not permitted: the peak is then that of the whole process
            return


def peak_memory_bytes() -> int:
    """Largest memory in use since the last reset."""
    if has_gpu():
        return int(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


# The memory that a stage takes on one worker: forecast before it runs, measured while it trains.


@dataclass(frozen=True)
class AllocatedBytes:
    """Bytes of the tensors that live throughout a step, by purpose."""

    weights: int
    gradients: int
    optimizer: int


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes behind tensors; storage that several of them share is counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class GradientPeak:
    """Largest bytes of gradients that existed at the same time, until it is stopped.

    Args:
        parameters: of the model, after everything else (DeepSpeed) has hooked into them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.peak = 0
        self._parameters = list(parameters)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._record_peak)  # type: ignore[no-untyped-call]
            for parameter in self._parameters
        ]

    def _record_peak(self, _: torch.Tensor) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self.peak = max(self.peak, storage_bytes(gradients))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._parameters = [], []


def placement(training: TrainingConfig, *, num_workers: int, bf16: bool, gpu_bytes: int | None = None) -> Placement:
    """How a stage is spread over its workers."""
    return Placement(
        num_workers=num_workers,
        zero_stage=training.sharding(num_workers, bf16=bf16),
        micro_batch=training.micro_batch(num_workers),
        bf16=bf16,
        offload_optimizer=training.offload_optimizer,
        activation_checkpointing=training.activation_checkpointing,
        gpu_bytes=gpu_bytes,
        sums_in_fp32=training.sums_in_fp32(num_workers, bf16=bf16),
    )


def memory_metrics(
    held: AllocatedBytes, config: GrowtxConfig, stage: Stage, training: TrainingConfig, *, num_workers: int
) -> dict[str, Any]:
    """For the manifest: bytes as measured on this worker and as forecast; activations, where a GPU counts them."""
    total = memory_of_gpu(worker_device())
    spread = placement(training, num_workers=num_workers, bf16=use_bf16(training), gpu_bytes=total)
    tokens_per_step = training.global_batch_size * config.max_position_embeddings
    (row,) = forecast(config, [stage], spread, tokens_per_step=tokens_per_step)
    measured = asdict(held)
    if has_gpu():
        measured["activations"] = int(torch.cuda.max_memory_allocated()) - sum(measured.values())
    return {"held_bytes": measured, "forecast_bytes": asdict(row.memory)}
