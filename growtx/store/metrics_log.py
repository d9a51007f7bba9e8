"""`metrics.jsonl`: one row per logging step, rewound when a stage resumes from a checkpoint."""

from __future__ import annotations

import json
from typing import Any

from growtx.store.storage import Storage

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends rows and rewinds; a last line cut off by a crash is dropped."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def append(self, row: dict[str, Any]) -> None:
        self._storage.append_text(METRICS_FILE, json.dumps(row, ensure_ascii=False) + "\n")

    def rewind(self, *, stage: int, step: int) -> None:
        """Drop rows after `step` of `stage`: they will be written again."""
        if not self._storage.exists(METRICS_FILE):
            return
        kept = [row for row in read_metrics(self._storage) if (row["stage"], row["step"]) <= (stage, step)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        self._storage.write_text(METRICS_FILE, text)


def read_metrics(storage: Storage) -> list[dict[str, Any]]:
    """All complete rows of a run."""
    if not storage.exists(METRICS_FILE):
        return []
    rows = []
    for line in storage.read_bytes(METRICS_FILE).split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:  # a line that was being written when the process died, or no line at all
            continue
    return rows
