"""What the workers of a group agree on: outcomes of rank 0, control flags, sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from growtx.exceptions import GrowtxError

Result = TypeVar("Result")
_control_group: Any = None


def control_group() -> Any:
    """A gloo group for small host-side messages, so that they never wait for a GPU's stream."""
    global _control_group  # noqa: PLW0603 - one group per process, as torch keeps them too
    if _control_group is None:
        _control_group = dist.new_group(backend="gloo")
    return _control_group


def rank() -> int:
    return dist.get_rank()


def world_size() -> int:
    return dist.get_world_size()


def worker_device() -> torch.device:
    """The accelerator that Ray assigned to this worker, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


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
