"""What a run says of itself in `status.json`: a hint for people and for `growtx runs`, on which no work depends."""

from __future__ import annotations

from contextlib import suppress

from pydantic import BaseModel, Field

from growtx.config import parse_record
from growtx.exceptions import StoreError
from growtx.storage import Storage

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
