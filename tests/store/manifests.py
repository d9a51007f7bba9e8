"""Manifests and blobs of small lineages for the tests of growtx.store."""

from __future__ import annotations

from typing import Any

import torch

from growtx.store.blobs import BlobStore
from growtx.store.manifest import BlockRef, FrozenCheck, Manifest, write_manifest


def manifest(index: int, parent: Manifest | None, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": f"depth-{index}",
        "index": index,
        "parent": parent.digest() if parent else None,
        "stage": {"add": 1, "train": {"learning_rate": 3e-4}},
        "model": {"vocab_size": 10},
        "substrate": "a" * 64,
        "blocks": (),
        "head": "b" * 64,
        "tokenizer_fingerprint": "t",
        "substrate_fingerprint": "s",
        "data_fingerprint": "d",
        "config_fingerprint": "c",
        "active_parameters": 10,
        "total_parameters": 20,
        "num_tokens": 100 * index,
        "new_blobs": (),
        "frozen_check": FrozenCheck(num_tensors=1, before="f", after="f"),
        "ended_by": "tokens",
    }
    return Manifest(**{**fields, **changes})


def write_lineage(root: str, num_stages: int = 3, **changes: Any) -> list[Manifest]:
    """A run of stages with one block each, and all its blobs; `changes` are those of the last manifest."""
    store = BlobStore(root)
    substrate = store.put({"substrate": torch.zeros(2, 2)})
    blocks: tuple[BlockRef, ...] = ()
    manifests: list[Manifest] = []
    for index in range(1, num_stages + 1):
        block, head = store.put({"block": torch.full((3,), index)}), store.put({"head": torch.full((2,), index)})
        blocks = (*blocks, BlockRef(blob=block))
        made: dict[str, Any] = {"substrate": substrate, "blocks": blocks, "head": head}
        new = (substrate, block, head) if index == 1 else (block, head)
        extra = changes if index == num_stages else {}
        manifests.append(
            manifest(index, manifests[-1] if manifests else None, **{**made, "new_blobs": new, **extra}),
        )
        write_manifest(store.storage, manifests[-1])
    return manifests
