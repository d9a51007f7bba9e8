"""What text a run was trained on, by source: `data.json`, and how it changed, if somebody accepted that."""

from __future__ import annotations

from pydantic import Field

from growtx.config import ConfigModel, parse_record
from growtx.storage import Storage

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


class DataRecord(ConfigModel):
    """What `data.json` holds.

    Attributes:
        data_fingerprint: of all data, as manifests name it.
        sources: a fingerprint of each source's tokens, on both sides of the held-out split.
        packed_path: where the packed tokens were when the run last used them; None: of an earlier version.
        parent: hash of the manifest that the run continues; it may have been continued itself since.
    """

    format_version: int = 1
    data_fingerprint: str
    sources: dict[str, str]
    packed_path: str | None = None
    parent: str | None = None
    changes: tuple[DataChange, ...] = ()


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
