"""How a stage scales: tokens per second on one worker and on more, and the pause between two stages.

An ordinary run on Ray. One plan covers everything: after a first stage that builds the depth, stages that train the
newest block and the head cycle through the numbers of workers, two in a row on each, because the pause between those
two is measured as well. Every worker has the same micro batch, whatever their number.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.growth import Shape
from growtx.config import build_config
from growtx.growth.lineage import open_lineage
from growtx.run.config import RunConfig
from growtx.run.grow import grow
from growtx.storage import Storage
from growtx.store.manifest import Manifest
from growtx.store.runs import read_metrics


@dataclass(frozen=True)
class GroupFigures:
    """One number of workers; medians over the rounds.

    Attributes:
        ratio: tokens per second relative to the first number of workers, within a round.
        pause_seconds: from the end of a stage's last step to the start of the next one's first.
    """

    num_workers: int
    tokens_per_second: float
    ratio: float
    pause_seconds: float


def group_figures(
    shape: Shape, depth: int, num_workers: Sequence[int], *, rounds: int, num_steps: int
) -> list[GroupFigures]:
    """Train on every number of workers in turn, `rounds` times.

    Args:
        num_steps: of each measured stage; the first half of them warms up.
    """
    with TemporaryDirectory() as directory, (Path(directory) / "log").open("w") as log:
        config = _config(shape, depth, num_workers, rounds=rounds, num_steps=num_steps)
        grow(config, f"{directory}/run", console=Console(file=log))
        manifests = open_lineage(f"{directory}/run").manifests[1:]
        speeds = {
            row["stage"]: row["train/tokens_per_second"]
            for row in read_metrics(Storage(f"{directory}/run"))
            if "train/tokens_per_second" in row
        }
    return list(_figures(manifests, speeds, num_workers))


def _config(shape: Shape, depth: int, num_workers: Sequence[int], *, rounds: int, num_steps: int) -> RunConfig:
    stages: list[dict[str, Any]] = [{"add": depth, "num_workers": num_workers[0], "train": {"steps": 1}}]
    for workers in [workers for _ in range(rounds) for workers in num_workers for _ in range(2)]:
        train = {"steps": num_steps, "global_batch_size": shape.micro_batch * workers}
        stages.append({"add": 0, "active": 1, "num_workers": workers, "train": train})
    model = {"hidden_size": shape.hidden_size, "num_attention_heads": shape.num_heads}
    return build_config(
        RunConfig,
        {
            "model": {**model, "context_length": shape.context_length},
            "tokenizer": {"family": "compact", "vocab_size": shape.vocab_size},
            "substrate": {"kind": "binary"},
            "data": {"sources": [{"microworld": {}}]},
            "plan": {"stages": stages},
            "training": {
                "global_batch_size": shape.micro_batch * num_workers[0],
                "prefix": "recompute",
                "log_every_steps": max(1, num_steps // 2),
                "checkpoint": {"every_seconds": None},
            },
            "resources": {"num_workers": num_workers[0]},
        },
    )


def _figures(
    manifests: Sequence[Manifest], speeds: dict[int, float], num_workers: Sequence[int]
) -> Iterator[GroupFigures]:
    """The second stage of each pair tells both its speed and the pause before it."""
    seconds = [(manifest, speeds[manifest.index]) for manifest in manifests[1::2]]
    rounds = [dict(zip(num_workers, seconds[at:], strict=False)) for at in range(0, len(seconds), len(num_workers))]
    for workers in num_workers:
        yield GroupFigures(
            num_workers=workers,
            tokens_per_second=statistics.median(each[workers][1] for each in rounds),
            ratio=statistics.median(each[workers][1] / each[num_workers[0]][1] for each in rounds),
            pause_seconds=statistics.median(each[workers][0].metrics["pause_seconds"] for each in rounds),
        )
