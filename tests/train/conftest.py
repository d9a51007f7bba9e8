"""The variables of a rank, and a process group in a process of its own."""

from __future__ import annotations

import os
from typing import Any


def rank_variables(*, rank: int, world_size: int) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": 0}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}


def set_up_rank(rank: int, world_size: int, store: str) -> Any:
    """The same in a process of its own."""
    import torch
    import torch.distributed as dist

    os.environ.update(rank_variables(rank=rank, world_size=world_size), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    return dist
