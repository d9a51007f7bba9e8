"""Training values that somebody changed when a run was resumed: `changes.jsonl`."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, ValidationError

from growtx.config import ConfigModel
from growtx.exceptions import StoreError
from growtx.storage import Storage

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
