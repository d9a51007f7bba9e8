"""What a run says of itself beside its manifests: `status.json`, `data.json` and `changes.jsonl`."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from growtx.config import ConfigModel, parse_record
from growtx.exceptions import StoreError
from growtx.storage import Storage

# A hint for people and for `growtx runs`, on which no work depends.

RUN_FILE = "run.yaml"
STATUS_FILE = "status.json"
ENDED = ("finished", "failed", "stopped")


class Status(BaseModel):
    """What `status.json` says of a run."""

    state: str = ""
    job_id: str | None = None
    num_stages: int | None = Field(None, ge=0)


def read_status(storage: Storage) -> Status:
    """The status of a run; where it is missing or damaged, nothing is known."""
    if storage.exists(STATUS_FILE):
        with suppress(StoreError):
            return parse_record(Status, storage.read_bytes(STATUS_FILE), storage.path(STATUS_FILE), "")
    return Status()


# What text a run was trained on, by source, and how it changed, if somebody accepted that.

DATA_FILE = "data.json"


class DataChange(ConfigModel):
    """The text of a source changed between two stages, or inside one, and the run went on.

    Attributes:
        before, after: fingerprints of the packed tokens; None: the source was not there.
        stage: the first one that has trained on the new text, at least in part.
        accepted: when `--accept-new-data` was given (UTC, ISO 8601).
    """

    source: str
    before: str | None
    after: str | None
    stage: int = Field(ge=1)
    accepted: str

    def sentence(self) -> str:
        """For lineage and report."""
        before, after = (value[:12] if value else "none" for value in (self.before, self.after))
        return f"from stage {self.stage} on other text of {self.source} ({before} -> {after})"


class SourceReading(ConfigModel):
    """What was read of a source, for people.

    Attributes:
        share: of the bytes of its files.
        num_parts, num_parts_read: in how many pieces it can be read, and how many the plan has needed.
        dropped: rows that are in no window, by reason.
    """

    name: str
    share: float = Field(ge=0, le=1)
    num_parts: int = Field(ge=1)
    num_parts_read: int = Field(ge=1)
    num_documents: int = Field(ge=0)
    num_held_out: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    num_tokens: int = Field(ge=0)
    dropped: dict[str, int] = Field(default_factory=dict)


class DataRecord(ConfigModel):
    """What `data.json` holds.

    Attributes:
        data_fingerprint: of all data, as manifests name it.
        sources: a fingerprint of each source's tokens, on both sides of the held-out split.
        packed_path: where the packed tokens were when the run last used them; None: of an earlier version.
        parent: hash of the manifest that the run continues; it may have been continued itself since.
        readings: what was read of each source; none: of an earlier version.
    """

    format_version: int = 1
    data_fingerprint: str
    sources: dict[str, str]
    packed_path: str | None = None
    parent: str | None = None
    changes: tuple[DataChange, ...] = ()
    readings: tuple[SourceReading, ...] = ()


def read_data_record(run: Storage) -> DataRecord | None:
    """The record of a run; None for runs from before there was one.

    Raises:
        StoreError: it is damaged.
    """
    if not run.exists(DATA_FILE):
        return None
    remedy = "Restore it from a copy; without one, delete it and resume with --accept-new-data"
    return parse_record(DataRecord, run.read_bytes(DATA_FILE), run.path(DATA_FILE), remedy)


def write_data_record(run: Storage, record: DataRecord) -> None:
    run.write_text(DATA_FILE, record.model_dump_json(indent=1) + "\n")


# Training values that somebody changed when a run was resumed.

CHANGES_FILE = "changes.jsonl"


class ValueChange(ConfigModel):
    """A value of the configuration that later stages trained with.

    Attributes:
        key: dotted, as on the command line.
        from_stage: the first stage that was not finished then.
        at: UTC, ISO 8601.
    """

    key: str
    before: Any
    after: Any
    from_stage: int = Field(ge=1)
    at: str

    def sentence(self) -> str:
        """For lineage and report."""
        return f"{self.key} changed from {self.before} to {self.after} from stage {self.from_stage} on"


def read_changes(run: Storage) -> list[ValueChange]:
    """All changes of a run, oldest first.

    Raises:
        StoreError: the file is damaged.
    """
    if not run.exists(CHANGES_FILE):
        return []
    try:
        return [ValueChange.model_validate(json.loads(line)) for line in run.read_text(CHANGES_FILE).splitlines()]
    except (ValidationError, ValueError, RecursionError) as error:
        raise StoreError(
            f"{run.path(CHANGES_FILE)} is damaged", "Restore it from a copy, or delete it: it is a record alone"
        ) from error


def append_changes(run: Storage, changes: list[ValueChange]) -> None:
    """Add to the record; no change adds nothing."""
    if changes:
        run.append_text(CHANGES_FILE, "".join(change.model_dump_json() + "\n" for change in changes))
