"""The runs under a directory and the state each is in, read from their files alone (`growtx runs DIR`).

A run that ended says so in its status file. One that says "running" may have died without a word: its lock tells, or,
where locks do not reach (object stores, other machines), whether something in its directory still changes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from growtx.config import parse_json
from growtx.exceptions import StoreError
from growtx.storage import Storage
from growtx.store.manifest import list_manifests
from growtx.store.run_lock import is_locked
from growtx.store.run_records import RUN_FILE, STATUS_FILE, read_status

# `metrics.jsonl`: one row per logging step, rewound when a stage resumes from a checkpoint.


METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends rows and rewinds; a last line cut off by a crash is dropped."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def append(self, row: dict[str, Any]) -> None:
        self._storage.append_text(METRICS_FILE, json.dumps(row, ensure_ascii=False) + "\n")

    def rewind(self, *, stage: int, step: int) -> None:
        """Drop rows after `step` of `stage`, and the score at its end: they will be written again."""
        if not self._storage.exists(METRICS_FILE):
            return
        rows = [row for row in read_metrics(self._storage) if (row["stage"], row["step"]) <= (stage, step)]
        kept = [row for row in rows if row["stage"] < stage or row.get("eval/when") != "end"]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        self._storage.write_text(METRICS_FILE, text)


def read_metrics(storage: Storage) -> list[dict[str, Any]]:
    """All complete rows of a run; every row has its `stage` and `step`."""
    if not storage.exists(METRICS_FILE):
        return []
    rows = _rows(storage.read_bytes(METRICS_FILE), storage.path(METRICS_FILE))
    return [row for row in rows if "stage" in row and "step" in row]


def _rows(data: bytes, where: str) -> list[dict[str, Any]]:
    """The rows in lines of JSON; what a dying process has cut off, or what is damaged, is left out."""
    rows = []
    for line in data.split(b"\n"):
        with suppress(StoreError):
            rows.append(parse_json(line, where, ""))
    return [row for row in rows if isinstance(row, dict) and all(_is_count(row.get(key, 0)) for key in _COUNTS)]


_COUNTS = ("stage", "step", "num_tokens")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
    status = read_status(storage)
    tail = _last_rows(storage)
    updated = _last_change(storage)
    return RunSummary(
        name=storage.root.rsplit("/", 1)[-1],
        path=storage.root,
        state=_ENDED.get(status.state) or _state_of_silent_run(storage, updated, now),
        updated=updated,
        job_id=status.job_id,
        num_stages=status.num_stages,
        num_finished_stages=len(list_manifests(storage)),
        num_tokens=next((row["num_tokens"] for row in reversed(tail) if "num_tokens" in row), None),
        bits_per_byte=_newest_score(tail),
    )


def _state_of_silent_run(storage: Storage, updated: datetime | None, now: datetime) -> RunState:
    held = is_locked(storage)
    if held is None:
        held = updated is not None and now - updated < SILENT_AFTER
    return "running" if held else "interrupted"


def _last_rows(storage: Storage) -> list[dict[str, Any]]:
    """Rows at the end of `metrics.jsonl`, oldest first; lines cut off at either end are left out."""
    return _rows(storage.read_tail(METRICS_FILE).encode(), METRICS_FILE)


def _newest_score(rows: list[dict[str, Any]]) -> float | None:
    scores = (row.get("eval/bits_per_byte") for row in reversed(rows))
    return next((float(score) for score in scores if isinstance(score, (int, float))), None)


def _last_change(storage: Storage) -> datetime | None:
    """The latest modification among the files that a living run keeps writing."""
    times = [storage.modified(name) for name in (RUN_FILE, STATUS_FILE, METRICS_FILE)]
    return max((time for time in times if time is not None), default=None)
