"""Checkpoints: the resumable state inside a stage, verified when they are read.

`checkpoints/stage-NN/step-NNNNNNNN/` of a run holds `state.safetensors` (weights and both Adam moments of what trains,
whole tensors, fp32) and `checkpoint.json` (stage, step, hash of the former; written last). They do not depend on
the sharding, so they work after lost workers, with a restarted driver, and for other numbers of workers and ZeRO
stages. We write them ourselves, not through `ray.train.report`, where a full disk would end in Ray's traceback.
"""

from __future__ import annotations

import hashlib
import logging

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field

from growtx.config import parse_record
from growtx.exceptions import StoreError
from growtx.growth.assembly import State
from growtx.storage import Storage
from growtx.train.engine import MOMENTS

logger = logging.getLogger(__name__)
CHECKPOINTS_DIR = "checkpoints"
STATE_FILE = "state.safetensors"
INFO_FILE = "checkpoint.json"


class CheckpointInfo(BaseModel):
    """Where in a run a checkpoint was taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: int = Field(ge=1)
    stage_fingerprint: str  # of the resolved stage and its parent: a changed plan must not resume from it
    step: int = Field(ge=0)
    seconds: float  # trained in this stage so far
    best_bits_per_byte: float | None = None
    evaluations_without_gain: int = Field(0, ge=0)
    frozen_before: str = ""
    first_bits_per_byte: float | None = None
    state_sha256: str = ""
    data_fingerprint: str = ""
    evaluation_due: bool = False  # the stop came during the evaluation that belongs to this step


def write_checkpoint(
    run: Storage, info: CheckpointInfo, weights: State, moments: dict[str, State], *, keep: int
) -> str:
    """Write a checkpoint into a run and remove all but the `keep` newest ones of its stage; returns its directory.

    Raises:
        StoreError: it cannot be written; earlier ones are untouched, and a half-written one is ignored.
    """
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    for key, state in moments.items():
        tensors |= {f"{key}/{name}": tensor for name, tensor in state.items()}
    data = safetensors.torch.save(tensors)
    sealed = info.model_copy(update={"state_sha256": hashlib.sha256(data).hexdigest()})
    stage_dir = f"{CHECKPOINTS_DIR}/stage-{info.stage:02d}"
    directory = f"{stage_dir}/step-{info.step:08d}"
    run.write_bytes(f"{directory}/{STATE_FILE}", data)
    run.write_text(f"{directory}/{INFO_FILE}", sealed.model_dump_json(indent=1))
    names = run.list_names(stage_dir)
    newest = names.index(directory.rsplit("/", 1)[-1])  # anything after it was damaged, or this run would be there
    for name in (*names[: max(0, newest + 1 - keep)], *names[newest + 1 :]):
        run.remove(f"{stage_dir}/{name}")
    return directory


def find_checkpoint(run: Storage, stage: int, stage_fingerprint: str) -> tuple[str, CheckpointInfo] | None:
    """The newest intact checkpoint of a stage, as its path in the run and its description.

    Damaged or half-written ones are skipped with a warning.
    """
    candidates: list[tuple[int, str, CheckpointInfo]] = []
    for path in run.list_files(CHECKPOINTS_DIR, suffix=INFO_FILE):
        directory = path.rsplit("/", 1)[0]
        try:
            info = parse_record(CheckpointInfo, run.read_bytes(path), path, "")
        except StoreError:
            logger.warning("checkpoint %s is damaged (%s); trying the previous one", directory, INFO_FILE)
            continue
        if info.stage == stage:
            candidates.append((info.step, directory, info))
    if others := [item for item in candidates if item[2].stage_fingerprint != stage_fingerprint]:
        logger.warning(
            "%d checkpoints of stage %d were made with another plan, parent or version of growtx and are not used",
            len(others),
            stage,
        )
        candidates = [item for item in candidates if item not in others]
    for _, directory, info in sorted(candidates, key=lambda candidate: candidate[:2], reverse=True):
        if _is_intact(run, directory, info):
            return directory, info
        logger.warning("checkpoint %s is damaged (%s); trying the previous one", directory, STATE_FILE)
    return None


def _is_intact(run: Storage, directory: str, info: CheckpointInfo) -> bool:
    path = f"{directory}/{STATE_FILE}"
    return run.exists(path) and hashlib.sha256(run.read_bytes(path)).hexdigest() == info.state_sha256


def read_checkpoint(run: Storage, directory: str, sha256: str) -> tuple[State, dict[str, State]]:
    """Weights and moments of a checkpoint, by parameter name.

    Args:
        sha256: of its state: what one rank has found intact, another may not read intact.

    Raises:
        StoreError: the state is missing or damaged.
    """
    data = run.read_bytes(f"{directory}/{STATE_FILE}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(f"{run.path(directory)}/{STATE_FILE} is damaged", "Run the same command with --resume")
    tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    parts: dict[str, State] = {part: {} for part in ("weights", *MOMENTS)}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    return parts.pop("weights"), parts


def remove_checkpoints(run: Storage) -> None:
    """Delete all checkpoints of a finished run."""
    if run.exists(CHECKPOINTS_DIR):
        run.remove(CHECKPOINTS_DIR)
