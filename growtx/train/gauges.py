"""The newest row of `metrics.jsonl` as Prometheus gauges, for the dashboards in cluster/monitoring.

Ray exports them from the node that they were set on, with the prefix `ray_`. They are for looking on; the record is
`metrics.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Gauge

DESCRIPTIONS = {
    "train/loss": "nats per token, over the steps since the last row",
    "train/learning_rate": "of the active blocks",
    "train/tokens_per_second": "over all workers",
    "train/grad_norm": "before clipping",
    "eval/loss": "nats per token on held-out windows",
    "eval/bits_per_byte": "on held-out windows",
    "stage": "of the plan, from 1",
    "num_blocks": "depth of the model in training",
    "num_tokens": "trained on since the first stage",
    "active_parameters": "parameters that receive gradients",
    "peak_memory_bytes": "of the worker with rank 0",
}


def gauge_name(key: str) -> str:
    """`train/loss` is exported as `ray_growtx_train_loss`."""
    return f"growtx_{key.replace('/', '_')}"


@cache
def _gauges() -> dict[str, Gauge]:
    """Once per process: a process may train several runs."""
    return {key: Gauge(gauge_name(key), text, tag_keys=("run",)) for key, text in DESCRIPTIONS.items()}


class TrainingGauges:
    """One gauge per key of a row, labelled with the run directory; keys that a row does not have keep their value."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}

    def update(self, row: Mapping[str, Any]) -> None:
        for key, gauge in _gauges().items():
            if row.get(key) is not None:
                gauge.set(float(row[key]), tags=self._tags)
