"""The runs under a directory and the state each is in, read from their files alone (`growtx runs DIR`).

A run that ended says so in its status file. One that says "running" may have died without a word: its lock tells, or,
where locks do not reach (object stores, other machines), whether something in its directory still changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from growtx.exceptions import StoreError
from growtx.storage import Storage
from growtx.store.manifest import list_manifests
from growtx.store.run_lock import is_locked

# `metrics.jsonl`: one row per logging step, rewound when a stage resumes from a checkpoint.


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


RUN_FILE = "run.yaml"
STATUS_FILE = "status.json"
SILENT_AFTER = timedelta(minutes=10)  # a first step on a large cluster may take minutes before anything is written

RunState = Literal["running", "finished", "failed", "interrupted"]
_ENDED: dict[Any, RunState] = {"finished": "finished", "failed": "failed", "stopped": "interrupted"}


@dataclass(frozen=True)
class RunSummary:
    """One run, as `growtx runs` prints it; None where its files do not say."""

    name: str
    path: str
    state: RunState
    updated: datetime | None
    job_id: str | None
    num_stages: int | None
    num_finished_stages: int
    num_tokens: int | None
    bits_per_byte: float | None


def list_runs(root: str, *, now: datetime | None = None) -> list[RunSummary]:
    """The runs in `root` (itself, or its direct children), newest first.

    Args:
        root: a directory on any fsspec file system.
        now: the time to judge silence by; default: the present.

    Raises:
        StoreError: `root` does not exist.
    """
    storage = Storage(root)
    if not storage.exists():
        raise StoreError(f"{root}: there is no such directory", "Give the directory that holds the runs")
    candidates = [storage] if storage.exists(RUN_FILE) else [storage.child(name) for name in storage.list_names()]
    runs = [summarise_run(run, now=now or datetime.now(UTC)) for run in candidates if run.exists(RUN_FILE)]
    return sorted(runs, key=lambda run: (run.updated is not None, run.updated, run.name), reverse=True)


def summarise_run(storage: Storage, *, now: datetime) -> RunSummary:
    """What the files of one run directory say."""
    status = _read_status(storage)
    tail = _last_rows(storage)
    updated = _last_change(storage)
    return RunSummary(
        name=storage.root.rsplit("/", 1)[-1],
        path=storage.root,
        state=_ENDED.get(status.get("state")) or _state_of_silent_run(storage, updated, now),
        updated=updated,
        job_id=status.get("job_id"),
        num_stages=status.get("num_stages"),
        num_finished_stages=len(list_manifests(storage)),
        num_tokens=_newest(tail, "num_tokens"),
        bits_per_byte=_newest(tail, "eval/bits_per_byte"),
    )


def _state_of_silent_run(storage: Storage, updated: datetime | None, now: datetime) -> RunState:
    held = is_locked(storage)
    if held is None:
        held = updated is not None and now - updated < SILENT_AFTER
    return "running" if held else "interrupted"


def _read_status(storage: Storage) -> dict[str, Any]:
    """The status file; empty when there is none or when it was cut off, since one bad run must not hide the others."""
    if not storage.exists(STATUS_FILE):
        return {}
    try:
        status = json.loads(storage.read_bytes(STATUS_FILE))
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _last_rows(storage: Storage) -> list[dict[str, Any]]:
    """Rows at the end of `metrics.jsonl`, oldest first; lines cut off at either end are left out."""
    rows = []
    for line in storage.read_tail(METRICS_FILE).splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _newest(rows: list[dict[str, Any]], key: str) -> Any:
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def _last_change(storage: Storage) -> datetime | None:
    """The latest modification among the files that a living run keeps writing."""
    times = [storage.modified(name) for name in (RUN_FILE, STATUS_FILE, METRICS_FILE)]
    return max((time for time in times if time is not None), default=None)
