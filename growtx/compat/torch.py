"""Private parts of torch: dynamo's limits and counters, which have no public names.

`torch.compile` past its limit of graphs runs a function uncompiled and says nothing; here it is an error. Dynamo is
imported by those who compile: it takes a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from growtx.exceptions import TrainingError

SEEN = "2.13.0"
TOUCHED = (
    ("torch._dynamo.config:recompile_limit", "allow the graphs of a deep stage"),
    ("torch._dynamo.config:fail_on_recompile_limit_hit", "never run uncompiled without a word"),
    ("torch._dynamo.exc:FailOnRecompileLimitHit", "say so in a sentence"),
    ("torch._dynamo.utils:counters", "count the graphs"),
)
MOST_GRAPHS = 32  # of a stage, however deep: four, for blocks that are frozen or active, in training or evaluation


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Compile blocks afresh: the graphs of an earlier stage's model would count against the limit of this one."""
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    config.recompile_limit = MOST_GRAPHS
    config.fail_on_recompile_limit_hit = True
    for block in blocks:
        block.compile(backend=backend)


def num_compiled_graphs() -> int:
    """Graphs compiled since `compile_blocks`."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Let the limit of graphs end in a sentence.

    Raises:
        TrainingError: it was reached.
    """
    try:
        yield
    except Exception as error:
        dynamo = sys.modules.get("torch._dynamo.exc")
        if dynamo is None or not isinstance(error, dynamo.FailOnRecompileLimitHit):
            raise
        raise TrainingError(
            f"training.compile: torch.compile made {num_compiled_graphs()} graphs of the blocks and would run the rest "
            "uncompiled",
            "Set training.compile=false and resume",
        ) from error
