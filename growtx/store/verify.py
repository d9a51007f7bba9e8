"""Re-hash everything a run directory refers to; find and remove what nothing refers to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from growtx.config import parse_json
from growtx.exceptions import StoreError
from growtx.storage import PART_SUFFIX, Storage
from growtx.store.blobs import BLOBS_DIR, BlobStore, blob_path
from growtx.store.manifest import (
    MANIFESTS_DIR,
    Manifest,
    list_manifests,
    parse_manifest,
    read_lineage,
    read_manifests,
    stage_index,
)
from growtx.store.run_lock import LOCK_FILE, held
from growtx.store.trials import TRIALS_DIR

YOUNG = timedelta(hours=1)  # what is younger may belong to something that is not written down yet
# Files beside the manifests that name a blob, and the key that they name it by: a run that was prepared and has
# trained nothing yet has only the former, an ensemble has only the latter.
_RECORDS = {"substrate.json": "blob", "ensemble.json": "rule_blob"}


@dataclass(frozen=True)
class VerifyReport:
    """What `growtx verify` found."""

    num_manifests: int
    num_blobs: int
    num_bytes: int
    missing: dict[str, list[str]] = field(default_factory=dict)  # blob -> manifests that need it
    corrupt: dict[str, list[str]] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)  # manifests whose frozen tensors changed during the stage
    orphans: list[str] = field(default_factory=list)  # paths of blobs nothing refers to and of half-written ones
    kept: list[str] = field(default_factory=list)  # those of them that pruning left, because they are young
    pruned_bytes: int = 0

    @property
    def is_intact(self) -> bool:
        return not (self.missing or self.corrupt or self.moved)


def verify(root: str, *, prune: bool = False, min_age: timedelta = YOUNG) -> VerifyReport:
    """Check every manifest, its chain of parents and every blob of a run directory.

    Args:
        root: the directory of a run or of an ensemble.
        prune: also remove the orphans, which a crash before a manifest was written leaves; nothing is removed where
            something is missing or damaged, since then nobody knows what is needed.
        min_age: of what is removed; what a stage has stored has no manifest until the stage is complete.

    Raises:
        StoreError: a manifest itself cannot be read, or its chain is broken.
        ConfigError: another process works on the run that is to be pruned.
    """
    storage = Storage(root)
    with held(storage) if prune else nullcontext():
        report = _verified(storage)
        return _pruned(storage, report, min_age) if prune and report.is_intact else report


def _verified(storage: Storage) -> VerifyReport:
    store = BlobStore(storage.root)
    manifests = read_manifests(storage)
    for manifest in manifests:
        read_lineage(storage, manifest.file_name)
    needed = needed_blobs(storage)
    present = set(store.list())
    missing = {blob: users for blob, users in needed.items() if blob not in present}
    corrupt = {blob: users for blob, users in needed.items() if blob not in missing and not store.is_intact(blob)}
    orphans = [blob_path(blob) for blob in sorted(present) if blob not in needed]
    orphans += storage.list_files(BLOBS_DIR, suffix=PART_SUFFIX)
    return VerifyReport(
        num_manifests=len(manifests),
        num_blobs=len(needed),
        num_bytes=sum(store.size_bytes(blob) for blob in needed if blob not in missing),
        missing=missing,
        corrupt=corrupt,
        moved=[m.file_name for m in manifests if m.frozen_check.before != m.frozen_check.after],
        orphans=orphans,
    )


def needed_blobs(storage: Storage) -> dict[str, list[str]]:
    """Every blob that anything in a directory refers to, with the files that do: manifests first.

    Raises:
        StoreError: one of these files cannot be read, so what it needs is not known.
    """
    needed: dict[str, list[str]] = {}
    for where, manifest in (*_own_manifests(storage), *_trial_manifests(storage)):
        for blob in dict.fromkeys((*manifest.blobs(), *manifest.new_blobs)):
            needed.setdefault(blob, []).append(where)
    for name, key in _RECORDS.items():
        if storage.exists(name) and (named := _named_blob(storage, name, key)) is not None:
            needed.setdefault(named, [name])
    return needed


def _own_manifests(storage: Storage) -> Iterator[tuple[str, Manifest]]:
    return ((manifest.file_name, manifest) for manifest in read_manifests(storage))


def _trial_manifests(storage: Storage) -> Iterator[tuple[str, Manifest]]:
    """Those of trials whose stage is still being searched: the best of them will join the lineage."""
    names = list_manifests(storage)
    done = stage_index(names[-1]) if names else 0
    for path in storage.list_files(TRIALS_DIR, suffix=".json"):
        if f"/{MANIFESTS_DIR}/" in path:
            manifest = parse_manifest(storage.read_bytes(path), storage.path(path))
            if manifest.index > done:
                yield path, manifest


def _named_blob(storage: Storage, name: str, key: str) -> str | None:
    tree: Any = parse_json(storage.read_bytes(name), storage.path(name), "Restore it from a copy")
    blob = tree.get(key, "") if isinstance(tree, dict) else ""
    if not (blob is None or isinstance(blob, str)):
        raise StoreError(f"{storage.path(name)} is damaged: {key} is not text", "Restore it from a copy")
    return blob or None


def _pruned(storage: Storage, report: VerifyReport, min_age: timedelta) -> VerifyReport:
    """Remove the orphans that are old enough."""
    now, kept, pruned_bytes = _now_of(storage), [], 0
    for path in report.orphans:
        modified = storage.modified(path)
        if modified is None:  # gone meanwhile: a part that was renamed
            continue
        if now - modified < min_age:
            kept.append(path)
        else:
            pruned_bytes += storage.size_bytes(path)
            storage.remove(path)
    return replace(report, kept=kept, pruned_bytes=pruned_bytes)


def _now_of(storage: Storage) -> datetime:
    """The time by the clock that dates files: that of a file server may differ from ours."""
    if storage.is_local and storage.exists(LOCK_FILE):
        os.utime(storage.path(LOCK_FILE))
        return storage.modified(LOCK_FILE) or datetime.now(UTC)
    return datetime.now(UTC)
