"""What a stage says while it runs: rows of metrics, the progress display."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from growtx.growth.budget import active_parameters
from growtx.growth.plan import Stage
from growtx.store.metrics_log import MetricsLog
from growtx.store.storage import Storage
from growtx.train.distributed import on_rank_zero, rank
from growtx.train.memory import peak_memory_bytes
from growtx.train.progress import StageProgress
from growtx.train.worker_context import WorkerContext


@dataclass
class Position:
    """How far the stage is; what a checkpoint remembers besides tensors."""

    step: int = 0
    seconds: float = 0.0
    best_bits_per_byte: float = math.inf
    evaluations_without_gain: int = 0
    first_score: float | None = None


class StageRecord:
    """Writes down and shows where a stage is.

    Args:
        num_steps: of the stage, unless time or convergence end it sooner.
        tokens_before: that earlier stages have trained on.
    """

    def __init__(self, context: WorkerContext, stage: Stage, *, num_steps: int, tokens_before: int) -> None:
        self._context, self._job, self._stage = context, context.job, stage
        self._num_steps = num_steps
        self._tokens_before = tokens_before
        self._tokens_per_step = self._job.tokens_per_step(stage)
        self._metrics = MetricsLog(Storage(self._job.run_dir))
        self._active = active_parameters(self._job.model_at(stage.num_blocks), stage)
        self.prefix_cached = False  # whether the frozen prefix's activations are read instead of computed

    def num_tokens(self, position: Position) -> int:
        """Tokens trained on since the first stage."""
        return self._tokens_before + position.step * self._tokens_per_step

    def rewind(self, step: int) -> None:
        """Forget the rows after a step of this stage. Collective."""
        on_rank_zero(lambda: self._metrics.rewind(stage=self._stage.index, step=step))

    def write(self, position: Position, values: dict[str, Any]) -> None:
        """Add a row. Collective."""
        row = {
            "step": position.step,
            "stage": self._stage.index,
            "stage_name": self._stage.name,
            "num_blocks": self._stage.num_blocks,
            "num_tokens": self.num_tokens(position),
            **values,
            "active_parameters": self._active,
            "peak_memory_bytes": peak_memory_bytes(),
            "time_seconds": round(position.seconds, 3),
        }
        on_rank_zero(lambda: self._metrics.append(row))
        self._context.show(row)

    def show(self, position: Position, **values: Any) -> None:
        """Tell the driver; the answer may be a request to stop. What is not given stays as it was."""
        if rank() != 0:
            return
        fraction = position.step / self._num_steps
        if self._stage.train.seconds is not None:
            fraction = max(fraction, position.seconds / self._stage.train.seconds)
        before = self._context.progress
        self._context.progress = StageProgress(
            stage=self._stage.index,
            name=self._stage.name,
            num_stages=self._job.num_stages,
            fraction=fraction,
            seconds=position.seconds,
            weights=self._job.stage_weights,
            bits_per_byte=values.get("bits_per_byte", before.bits_per_byte),
            loss=values.get("loss", before.loss),
            tokens_per_second=values.get("tokens_per_second", before.tokens_per_second),
            place=before.place,
            prefix_cached=self.prefix_cached,
            evaluated=values.get("evaluated", False),
        )
        self._context.poster.post(self._context.progress)
