"""Re-hash everything a run directory refers to; find and remove what nothing refers to."""

from __future__ import annotations

from dataclasses import dataclass, field

from growtx.storage import PART_SUFFIX
from growtx.store.blobs import BLOBS_DIR, BlobStore, blob_path
from growtx.store.manifest import list_manifests, read_lineage, read_manifest


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
    pruned_bytes: int = 0

    @property
    def is_intact(self) -> bool:
        return not (self.missing or self.corrupt or self.moved)


def verify(root: str, *, prune: bool = False) -> VerifyReport:
    """Check every manifest, its chain of parents and every blob of a run directory.

    Args:
        root: the run directory.
        prune: also remove the orphans, which a crash before a manifest was written leaves.

    Raises:
        StoreError: a manifest itself cannot be read, or its chain is broken.
    """
    store = BlobStore(root)
    manifests = [read_manifest(store.storage, name) for name in list_manifests(store.storage)]
    needed: dict[str, list[str]] = {}
    for manifest in manifests:
        read_lineage(store.storage, manifest.file_name)
        for blob in (*manifest.blobs(), *manifest.new_blobs):
            users = needed.setdefault(blob, [])
            if manifest.file_name not in users:
                users.append(manifest.file_name)
    present = store.list()
    missing = {blob: users for blob, users in needed.items() if blob not in present}
    corrupt = {blob: users for blob, users in needed.items() if blob not in missing and not store.is_intact(blob)}
    orphans = [blob_path(blob) for blob in present if blob not in needed]
    orphans += store.storage.list_files(BLOBS_DIR, suffix=PART_SUFFIX)
    pruned_bytes = 0
    if prune:
        for path in orphans:
            pruned_bytes += store.storage.size_bytes(path)
            store.storage.remove(path)
    return VerifyReport(
        num_manifests=len(manifests),
        num_blobs=len(needed),
        num_bytes=sum(store.size_bytes(blob) for blob in needed if blob not in missing),
        missing=missing,
        corrupt=corrupt,
        moved=[m.file_name for m in manifests if m.frozen_check.before != m.frozen_check.after],
        orphans=orphans,
        pruned_bytes=pruned_bytes,
    )
