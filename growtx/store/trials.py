"""The trials of a sweep as files: `trials/stage-KK/NNN/trial.json`, written at every change of a trial's state.

They decide what a resumed sweep still has to do, so they are written atomically and by the driver alone.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from growtx.config import parse_record
from growtx.storage import Storage

TRIALS_DIR = "trials"
TRIAL_FILE = "trial.json"
TrialState = Literal["running", "finished", "stopped", "failed"]


class TrialEvaluation(BaseModel):
    """Held-out bits per byte inside a trial."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fraction: float  # of the stage's steps
    bits_per_byte: float


class TrialRecord(BaseModel):
    """One trial. `stopped` by the scheduler; `running` also if the driver died: it will be repeated."""

    model_config = ConfigDict(extra="forbid")

    stage: int = Field(ge=1, le=9999)
    stage_name: str
    number: int = Field(ge=0)
    values: dict[str, Any]
    planned: bool = False  # whether these are the plan's own values
    state: TrialState = "running"
    evaluations: list[TrialEvaluation] = []
    bits_per_byte: float | None = None  # at the end, or at the last evaluation of a stopped one
    num_tokens: int = 0
    seconds: float = 0.0  # of optimizer steps
    total_seconds: float = 0.0  # including process start-up, evaluations and finalizing
    flops: float = 0.0
    monolithic_flops: float = 0.0  # the same tokens with every block in training
    error: str | None = None

    @property
    def label(self) -> str:
        return f"{self.number:03d}"


def trial_dir(stage: int, number: int) -> str:
    """Directory of a trial, relative to the sweep's run directory."""
    return f"{TRIALS_DIR}/stage-{stage:02d}/{number:03d}"


def write_trial(run: Storage, record: TrialRecord) -> None:
    run.write_text(f"{trial_dir(record.stage, record.number)}/{TRIAL_FILE}", record.model_dump_json(indent=1) + "\n")


def read_trials(run: Storage, stage: int | None = None) -> list[TrialRecord]:
    """All trials of a run, or of one stage, in order.

    Raises:
        StoreError: a record is damaged.
    """
    where = TRIALS_DIR if stage is None else f"{TRIALS_DIR}/stage-{stage:02d}"
    records = []
    for path in run.list_files(where, suffix=f"/{TRIAL_FILE}"):
        data = run.read_bytes(path)
        records.append(parse_record(TrialRecord, data, run.path(path), "Delete it to repeat the trial"))
    return sorted(records, key=lambda record: (record.stage, record.number))


def best_trial(records: list[TrialRecord]) -> TrialRecord | None:
    """The finished trial with the lowest bits per byte; the first of equals."""
    finished = [record for record in records if record.state == "finished" and record.bits_per_byte is not None]
    return min(finished, key=lambda record: (record.bits_per_byte, record.number), default=None)
