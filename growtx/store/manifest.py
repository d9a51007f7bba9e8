"""Manifests: the permanent result of a stage, as the hashes of everything it consists of.

`manifests/NN-name.json` is written last and atomically, so a crash before leaves only blobs that nothing refers to.
A lineage is the chain of manifests from the first stage to one of them, linked by the sha256 of the parent's bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from growtx.config import check_record, parse_json
from growtx.exceptions import StoreError
from growtx.storage import Storage

MANIFESTS_DIR = "manifests"
LATEST = f"{MANIFESTS_DIR}/latest"
FORMAT_VERSION = 1
_STAGE_NAME = r"[A-Za-z0-9._-]{1,100}"  # part of a file name
MANIFEST_FILE = rf"[0-9]{{2,4}}-{_STAGE_NAME}\.json"
_FILE_NAME = re.compile(MANIFEST_FILE)
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of a blob: part of a path, so nothing else may come in
Count = Annotated[int, Field(ge=0)]
WITHOUT_COPY = (
    "Restore it from a copy; without one, move it and the manifests of all later stages out of manifests/ and resume: "
    "they are trained again"
)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BlockRef(_Record):
    """One block: its finalized weights and the adapters to add to them, in order."""

    blob: Hash
    adapters: tuple[Hash, ...] = ()


class FrozenCheck(_Record):
    """Proof that what was frozen did not change: one hash over all frozen tensors before and after the stage."""

    num_tensors: Count
    before: str
    after: str


class Manifest(_Record):
    """A finished stage. Hashes are sha256 (hex), sizes in bytes, times in seconds."""

    format_version: int = FORMAT_VERSION
    name: str = Field(pattern=f"^{_STAGE_NAME}$")
    index: int = Field(ge=1, le=9999, description="position of the stage in its plan, from 1")
    parent: Hash | None = Field(description="sha256 of the parent manifest's bytes; null for the first stage")
    stage: dict[str, Any] = Field(description="the resolved stage")
    model: dict[str, Any] = Field(description="keyword arguments of GrowtxConfig")
    substrate: Hash
    blocks: tuple[BlockRef, ...]
    head: Hash = Field(description="final norm and LM head")
    tokenizer_fingerprint: str
    substrate_fingerprint: str
    data_fingerprint: str
    config_fingerprint: str
    active_parameters: Count
    total_parameters: Count
    num_tokens: Count = Field(description="tokens trained on since the first stage")
    new_blobs: tuple[Hash, ...] = Field(description="what this stage wrote")
    frozen_check: FrozenCheck
    ended_by: str
    metrics: dict[str, Any] = Field(default_factory=dict)
    samples: tuple[dict[str, str], ...] = ()
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: dict[str, str] = Field(default_factory=dict)

    @field_validator("samples")
    @classmethod
    def _samples_are_whole(cls, samples: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
        if any(set(sample) != {"prompt", "text"} for sample in samples):
            raise ValueError("a sample has a prompt and a text")
        return samples

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def file_name(self) -> str:
        return f"{self.index:02d}-{self.name}.json"

    def blobs(self) -> list[str]:
        """Every blob that the model of this manifest consists of."""
        blocks = [blob for block in self.blocks for blob in (block.blob, *block.adapters)]
        return [self.substrate, *blocks, self.head]

    def to_bytes(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n").encode()

    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def write_manifest(storage: Storage, manifest: Manifest) -> str:
    """Write a manifest and point `manifests/latest` at it, for people and other programs; returns its relative path."""
    path = f"{MANIFESTS_DIR}/{manifest.file_name}"
    storage.write_bytes(path, manifest.to_bytes())
    storage.write_text(LATEST, manifest.file_name + "\n")
    return path


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Raises StoreError: it is damaged, of another version, or names something outside of its run."""
    tree = parse_json(data, f"manifest {where}", WITHOUT_COPY)
    found = tree.get("format_version") if isinstance(tree, dict) else None
    if found != FORMAT_VERSION:
        raise StoreError(
            f"manifest {where} has format version {str(found)[:20]}, but this version of growtx reads {FORMAT_VERSION}",
            "Use the version of growtx that wrote it",
        )
    return check_record(Manifest, tree, f"manifest {where}", WITHOUT_COPY)


def read_manifest(storage: Storage, file_name: str) -> Manifest:
    """Raises StoreError: there is none, it is damaged, or it is that of another stage."""
    path = f"{MANIFESTS_DIR}/{file_name}"
    manifest = parse_manifest(storage.read_bytes(path), storage.path(path))
    if manifest.file_name != file_name:
        raise StoreError(f"manifest {storage.path(path)} is that of {manifest.file_name}", WITHOUT_COPY)
    return manifest


def list_manifests(storage: Storage) -> list[str]:
    """File names of all stage manifests, in order of their stages."""
    names = [name for name in storage.list_names(MANIFESTS_DIR) if _FILE_NAME.fullmatch(name)]
    return sorted(names, key=lambda name: (stage_index(name), name))


def stage_index(file_name: str) -> int:
    """The stage that a manifest is of, from its file name."""
    return int(file_name.partition("-")[0])


def latest_manifest(storage: Storage) -> Manifest | None:
    """The newest manifest, or None before the first stage is finished.

    Found by listing: a crash right after a manifest was written leaves `manifests/latest` one behind.
    """
    names = list_manifests(storage)
    return read_manifest(storage, names[-1]) if names else None


def read_lineage(storage: Storage, file_name: str | None = None) -> list[Manifest]:
    """The manifests from the first stage to `file_name` (default: the latest).

    Raises:
        StoreError: a link of the chain is missing or was changed afterwards.
    """
    manifests = {manifest.digest(): manifest for manifest in read_manifests(storage)}
    last = read_manifest(storage, file_name) if file_name else latest_manifest(storage)
    lineage: list[Manifest] = []
    while last is not None:
        lineage.append(last)
        if last.parent is not None and last.parent not in manifests:
            raise StoreError(
                f"the parent of manifest {last.file_name} in {storage.root} is missing or was changed",
                WITHOUT_COPY,
            )
        last = manifests[last.parent] if last.parent else None
    return lineage[::-1]


def read_manifests(storage: Storage) -> list[Manifest]:
    """All stage manifests of a run, in order of their stages; branches of repeated stages are among them."""
    return [read_manifest(storage, name) for name in list_manifests(storage)]
