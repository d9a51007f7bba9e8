"""Finding a result by its path, loading it, and continuing it in another run.

A path is a run directory, a manifest in one, an ensemble, or a Hugging Face directory.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

import growtx.models.causal_lm  # noqa: F401 - registers the Auto classes
from growtx.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from growtx.exceptions import StoreError
from growtx.growth.assembly import check_same
from growtx.store.blobs import BlobStore
from growtx.store.manifest import MANIFESTS_DIR, Manifest, read_lineage, write_manifest
from growtx.store.storage import Storage
from growtx.substrate.record import SUBSTRATE_FILE

TOKENIZER_DIR = "tokenizer"


@dataclass(frozen=True)
class Lineage:
    """The finished stages of a run, first to last."""

    storage: Storage
    manifests: tuple[Manifest, ...]

    @property
    def last(self) -> Manifest:
        return self.manifests[-1]

    def at_depth(self, num_blocks: int) -> Manifest:
        """The newest manifest of that depth."""
        for manifest in reversed(self.manifests):
            if manifest.num_blocks == num_blocks:
                return manifest
        depths = ", ".join(str(depth) for depth in sorted({m.num_blocks for m in self.manifests}))
        raise StoreError(f"{self.storage.root} has no stage of depth {num_blocks}", f"Its depths are {depths}")


def open_lineage(path: str) -> Lineage:
    """The lineage of a run directory, or up to one of its manifests.

    Raises:
        StoreError: there is no finished stage at `path`.
    """
    file_name = None
    root = path.rstrip("/")
    if root.endswith(".json"):
        root, _, file_name = root.rpartition("/")
        root = root.removesuffix(f"/{MANIFESTS_DIR}") if root != MANIFESTS_DIR else "."
    storage = Storage(root)
    if not storage.exists():
        raise StoreError(
            f"{path}: there is no such run", "Give a run directory, a manifest or a Hugging Face directory"
        )
    manifests = read_lineage(storage, file_name)
    if not manifests:
        raise StoreError(f"{path} has no finished stage", "Run `rayjobs/grow.py --resume` on it, or give another path")
    return Lineage(storage, tuple(manifests))


def tokenizer_of(lineage: Lineage) -> PreTrainedTokenizerFast:
    """The tokenizer that a lineage stands on.

    Raises:
        FingerprintError: what lies there is another one.
    """
    tokenizer = load_tokenizer(lineage.storage.download(TOKENIZER_DIR))
    where = lineage.storage.path(TOKENIZER_DIR)
    check_same("tokenizer", lineage.last.tokenizer_fingerprint, tokenizer_fingerprint(tokenizer), where)
    return tokenizer


def import_lineage(path: str, target: Storage) -> Manifest:
    """Copy a lineage (manifests, blobs, tokenizer, substrate) into a run that continues it; returns its last manifest.

    Doing it again changes nothing.
    """
    source = open_lineage(path)
    blobs, own = BlobStore(source.storage.root), BlobStore(target.root)
    for manifest in source.manifests:
        for blob in (*manifest.blobs(), *manifest.new_blobs):
            own.copy_from(blobs, blob)
    for file in (*source.storage.list_files(TOKENIZER_DIR), SUBSTRATE_FILE):
        target.write_bytes(file, source.storage.read_bytes(file))
    for manifest in source.manifests:
        if not target.exists(f"{MANIFESTS_DIR}/{manifest.file_name}"):
            write_manifest(target, manifest)
    return source.last
