"""Content-addressed tensors: a blob is a safetensors file named by the sha256 of its bytes.

The bytes are canonical (tensors sorted by name, contiguous, no metadata), so equal tensors have equal names,
`sha256sum` of the file proves its content, and hashing tensors in memory tells whether they are the stored ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError

from growtx.exceptions import CorruptBlobError, StoreError
from growtx.storage import Storage

BLOBS_DIR = "blobs"
Tensors = Mapping[str, torch.Tensor]
_BLOB_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")


def canonical_bytes(tensors: Tensors) -> bytes:
    """The canonical safetensors bytes of named tensors, which are what is hashed."""
    ready = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    return bytes(safetensors.torch.save(ready))


def hash_tensors(tensors: Tensors) -> str:
    """The blob name (sha256, hex) that these tensors have or would have."""
    return hashlib.sha256(canonical_bytes(tensors)).hexdigest()


def blob_path(blob: str) -> str:
    return f"{BLOBS_DIR}/{blob[:2]}/{blob}.safetensors"


WITHOUT_COPY = (
    "Restore the file from a copy; without one, move the manifests of the first stage that `growtx verify` says needs "
    "it, and of all later stages, out of manifests/ and resume: they are trained again"
)


class BlobStore:
    """The blobs of one run directory, or of several that share it.

    Args:
        root: the run directory (any fsspec address), or its storage where writes may be fenced off.
    """

    def __init__(self, root: str | Storage) -> None:
        self.storage = root if isinstance(root, Storage) else Storage(root)

    def put(self, tensors: Tensors) -> str:
        """Store tensors and return their blob name; nothing is written if the blob already exists.

        Then it is made young, so that pruning does not take it before something refers to it again.
        """
        data = canonical_bytes(tensors)
        blob = hashlib.sha256(data).hexdigest()
        path = blob_path(blob)
        if self.is_intact(blob):
            self.storage.touch(path)
        else:
            self.storage.write_bytes(path, data)
        return blob

    def get(self, blob: str) -> dict[str, torch.Tensor]:
        """Load a blob, verified.

        Raises:
            StoreError: there is no such blob.
            CorruptBlobError: its bytes do not hash to its name.
        """
        path = blob_path(blob)
        if not self.storage.exists(path):
            raise StoreError(f"blob {blob} is missing from {self.storage.root}", WITHOUT_COPY)
        data = self.storage.read_bytes(path)
        if hashlib.sha256(data).hexdigest() != blob:
            raise CorruptBlobError(
                f"blob {self.storage.path(path)} is corrupt: its bytes do not hash to its name",
                WITHOUT_COPY,
            )
        try:
            return dict(safetensors.torch.load(data))
        except SafetensorError as error:
            raise CorruptBlobError(
                f"blob {self.storage.path(path)} is not a safetensors file: {error}", WITHOUT_COPY
            ) from error

    def has(self, blob: str) -> bool:
        """Whether the blob is there, whatever its bytes are."""
        return self.storage.exists(blob_path(blob))

    def is_intact(self, blob: str) -> bool:
        """Whether the blob exists and its bytes hash to its name."""
        path = blob_path(blob)
        return self.storage.exists(path) and hashlib.sha256(self.storage.read_bytes(path)).hexdigest() == blob

    def size_bytes(self, blob: str) -> int:
        return self.storage.size_bytes(blob_path(blob))

    def list(self) -> list[str]:
        """Names of all blobs in the store."""
        names = [path.rsplit("/", 1)[-1] for path in self.storage.list_files(BLOBS_DIR, suffix=".safetensors")]
        return [name.removesuffix(".safetensors") for name in names if _BLOB_FILE.fullmatch(name)]

    def copy_from(self, other: BlobStore, blob: str) -> None:
        """Copy a blob from another store, verified."""
        if self.is_intact(blob):
            self.storage.touch(blob_path(blob))
        else:
            self.put(other.get(blob))
