"""What the workers of a group agree on: outcomes of rank 0, control flags, sums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from growtx.exceptions import GrowtxError, ResourceError

Result = TypeVar("Result")
ModelT = TypeVar("ModelT", bound=nn.Module)
SPARE = 1.5  # of a model's bytes, with what it needs to compute on a few texts
_control_group: Any = None


def control_group() -> Any:
    """A gloo group for small host-side messages, so that they never wait for a GPU's stream."""
    global _control_group  # noqa: PLW0603 - one group per process, as torch keeps them too
    if _control_group is None:
        _control_group = dist.new_group(backend="gloo")
    return _control_group


@contextmanager
def alone(*, use_gpu: bool) -> Iterator[None]:
    """A process group of this process alone, with the variables of a rank, which are then as they were.

    The group stays: DeepSpeed keeps references to it, so that a later run in the same process could have no other.
    """
    before = dict(os.environ)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if not use_gpu:
        os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in `__all__`
        dist.init_process_group("nccl" if use_gpu else "gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def rank() -> int:
    return dist.get_rank()


def world_size() -> int:
    return dist.get_world_size()


_device = torch.device("cpu")


def use_device(*, use_gpu: bool) -> torch.device:
    """Decide where this process computes: on the GPU that Ray assigned to it, or on the CPU, whatever GPUs there are.

    Everything else asks `worker_device`: Ray does not hide a machine's GPUs from workers that asked for none.

    Raises:
        ResourceError: there is no GPU.
    """
    global _device  # noqa: PLW0603 - a process computes in one place
    if use_gpu and not torch.cuda.is_available():
        raise ResourceError(
            "resources.use_gpu=true: this worker sees no GPU",
            "Install a build of torch for its driver, or set resources.use_gpu=false",
        )
    _device = torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")
    return _device


def worker_device() -> torch.device:
    """Where this process computes; the CPU until `use_device` has said otherwise."""
    return _device


def has_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return _device.type == "cuda"


def to_worker(model: ModelT) -> ModelT:
    """A model where this process computes, if there is room beside what is there already; else it stays on the host."""
    if has_gpu():
        needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        free, _ = torch.cuda.mem_get_info(_device)
        if free + torch.cuda.memory_reserved(_device) - torch.cuda.memory_allocated(_device) < SPARE * needed:
            return model
    return model.to(_device)


def on_rank_zero(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 and return its result on every rank.

    A user-facing error is raised on every rank alike, so that no worker is left waiting in a
    collective for one that gave up.
    """
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [(True, action())]
        except GrowtxError as error:
            outcome = [(False, error)]
    dist.broadcast_object_list(outcome, src=0, group=control_group())
    succeeded, value = outcome[0]
    if not succeeded:
        raise value
    return value  # type: ignore[no-any-return]


def on_rank_zero_alone(action: Callable[[], Result]) -> Result | None:
    """Run `action` on rank 0, whose result is too large to send; None on the others. Errors are raised on all."""
    result: list[Result] = []
    on_rank_zero(lambda: result.append(action()))
    return result[0] if result else None


def from_rank_zero(value: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A tensor of rank 0 on every rank; `like` has its shape on the others, and the device. Collective."""
    whole = torch.empty_like(like, dtype=torch.float32) if value is None else value.to(like.device, torch.float32)
    dist.broadcast(whole, src=0)
    return whole


def on_all_ranks(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank and return each rank's own result.

    A user-facing error on any of them is raised on all: the one of the lowest rank.
    """
    result, error = None, None
    try:
        result = action()
    except GrowtxError as found:
        error = found
    errors: list[GrowtxError | None] = [None] * world_size()
    dist.all_gather_object(errors, error, group=control_group())
    if first := next((found for found in errors if found is not None), None):
        raise first
    return cast(Result, result)


def any_rank(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether any rank has set it."""
    tensor = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=control_group())
    return [bool(value) for value in tensor]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a small tensor over all ranks, in float64 on the host."""
    total = values.detach().to("cpu", torch.float64)
    dist.all_reduce(total, group=control_group())
    return total
