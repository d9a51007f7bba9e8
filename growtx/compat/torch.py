"""Private parts of torch: dynamo's limits and counters, which have no public names.

`torch.compile` past its limit of graphs runs a function uncompiled and says nothing; here it is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from growtx.exceptions import TrainingError

MOST_GRAPHS = 32  # of a stage, however deep: five, for blocks that are frozen or active, in training or evaluation


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Compile blocks afresh: the graphs of an earlier stage's model would count against the limit of this one."""
    torch.compiler.reset()
    counters.clear()
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in blocks:
        block.compile(backend=backend)


def num_compiled_graphs() -> int:
    """Graphs compiled since `compile_blocks`."""
    return int(counters["stats"]["unique_graphs"])


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Let the limit of graphs end in a sentence.

    Raises:
        TrainingError: it was reached.
    """
    try:
        yield
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise TrainingError(
            f"training.compile: torch.compile made {num_compiled_graphs()} graphs of the blocks and would run the rest "
            "uncompiled",
            "Set training.compile=false and resume",
        ) from error
