"""The runs under a directory and the state each is in, read from their files alone (`growtx runs DIR`).

A run that ended says so in its status file. One that says "running" may have died without a word: its lock tells, or,
where locks do not reach (object stores, other machines), whether something in its directory still changes.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, Literal

from growtx.config import parse_json
from growtx.exceptions import StoreError
from growtx.storage import Storage
from growtx.store.manifest import list_manifests
from growtx.store.run_lock import is_locked
from growtx.store.run_records import RUN_FILE, STATUS_FILE, read_status

# `metrics.jsonl`: one row per logging step, rewound when a stage resumes from a checkpoint.


METRICS_FILE = "metrics.jsonl"
PARTS_DIR = "metrics-parts"  # of the log, on object stores, until a run ends
FLUSH_ROWS = 200
FLUSH_SECONDS = 10.0


class MetricsLog:
    """Appends rows and rewinds; a last line cut off by a crash is dropped.

    Object stores cannot append. There rows are gathered for a few seconds and written as a part of the log, so that
    every row is uploaded once and not with every later one; `join` makes one file of the parts.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._gathered: list[str] = []
        self._flushed_at = time.monotonic()
        self._part: int | None = None

    def append(self, row: dict[str, Any]) -> None:
        line = _line(row)
        if self._storage.is_local:
            self._storage.append_text(METRICS_FILE, line)
            return
        self._gathered.append(line)
        is_due = len(self._gathered) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS
        if is_due or "eval/loss" in row:
            self.flush()

    def flush(self) -> None:
        """See that all rows are stored: before whatever makes them the past, such as a checkpoint."""
        if self._storage.is_local and self._storage.exists(METRICS_FILE):
            self._storage.sync(METRICS_FILE)
        if self._gathered:
            if self._part is None:
                self._part = 1 + max((int(PurePosixPath(part).stem) for part in _parts(self._storage)), default=-1)
            self._storage.write_text(f"{PARTS_DIR}/{self._part:08d}.jsonl", "".join(self._gathered))
            self._part += 1
        self._gathered, self._flushed_at = [], time.monotonic()

    def rewind(self, *, stage: int, step: int) -> None:
        """Drop rows after `step` of `stage`, and the score at its end: they will be written again."""
        self.flush()
        if not has_metrics(self._storage):
            return
        rows = [row for row in read_metrics(self._storage) if (row["stage"], row["step"]) <= (stage, step)]
        self._replace([row for row in rows if row["stage"] < stage or row.get("eval/when") != "end"])

    def join(self) -> None:
        """One file of all parts, where there are any."""
        self.flush()
        if _parts(self._storage):
            self._replace(read_metrics(self._storage))

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        """One file of these rows; a crash before the parts are gone leaves rows twice, which `read_metrics` knows."""
        self._storage.write_text(METRICS_FILE, "".join(map(_line, rows)))
        for part in reversed(_parts(self._storage)):
            self._storage.remove(part)
        self._part = None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _parts(storage: Storage) -> list[str]:
    """The parts that were not joined yet, in order."""
    return [f"{PARTS_DIR}/{name}" for name in storage.list_names(PARTS_DIR)]


def has_metrics(storage: Storage) -> bool:
    """Whether any row was ever written."""
    return storage.exists(METRICS_FILE) or bool(_parts(storage))


def read_metrics(storage: Storage) -> list[dict[str, Any]]:
    """All complete rows of a run; every row has its `stage` and `step`."""
    files = [*([METRICS_FILE] if storage.exists(METRICS_FILE) else []), *_parts(storage)]
    lines = dict.fromkeys(line for file in files for line in storage.read_bytes(file).split(b"\n"))
    rows = _rows(list(lines), storage.path(METRICS_FILE))
    return [row for row in rows if "stage" in row and "step" in row]


def _rows(lines: list[bytes], where: str) -> list[dict[str, Any]]:
    """The rows in lines of JSON; what a dying process has cut off, or what is damaged, is left out."""
    rows = []
    for line in lines:
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
    """Rows at the end of the log, oldest first; lines cut off at either end are left out."""
    files = [METRICS_FILE, *_parts(storage)[-1:]]
    return _rows([line for file in files for line in storage.read_tail(file).encode().split(b"\n")], METRICS_FILE)


def _newest_score(rows: list[dict[str, Any]]) -> float | None:
    scores = (row.get("eval/bits_per_byte") for row in reversed(rows))
    return next((float(score) for score in scores if isinstance(score, (int, float))), None)


def _last_change(storage: Storage) -> datetime | None:
    """The latest modification among the files that a living run keeps writing."""
    times = [storage.modified(name) for name in (RUN_FILE, STATUS_FILE, METRICS_FILE, *_parts(storage)[-1:])]
    return max((time for time in times if time is not None), default=None)
