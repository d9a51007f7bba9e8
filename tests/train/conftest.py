"""A process group of one worker, which is all that an engine needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from growtx.train import distributed


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Ray Train sets up around a worker: rank variables and a group."""
    import torch.distributed as dist

    patch = pytest.MonkeyPatch()
    patch.setenv("DS_ACCELERATOR", "cpu")
    for name, value in rank_variables(rank=0, world_size=1).items():
        patch.setenv(name, value)
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    distributed._control_group = None
    patch.undo()


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
