"""Verification: everything that a manifest needs is there and as it was stored; the rest can be removed."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import torch

from growtx.exceptions import StoreError
from growtx.store.blobs import BlobStore, blob_path
from growtx.store.manifest import FrozenCheck
from growtx.store.verify import verify
from tests.store.manifests import write_lineage


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4()}/run"


def test_a_run_as_it_was_written_is_intact(root: str) -> None:
    write_lineage(root)
    report = verify(root)
    assert report.is_intact and (report.num_manifests, report.num_blobs) == (3, 7)
    assert report.num_bytes == sum(BlobStore(root).size_bytes(blob) for blob in BlobStore(root).list())
    assert not report.orphans


def test_a_missing_blob_is_named_with_every_manifest_that_needs_it(root: str) -> None:
    first = write_lineage(root)[0].blocks[0].blob
    BlobStore(root).storage.remove(blob_path(first))
    report = verify(root)
    assert report.missing == {first: ["01-depth-1.json", "02-depth-2.json", "03-depth-3.json"]}
    assert not report.is_intact and not report.corrupt


def test_a_changed_byte_is_named_with_every_manifest_that_needs_it(root: str) -> None:
    head = write_lineage(root)[1].head
    storage = BlobStore(root).storage
    storage.write_bytes(blob_path(head), storage.read_bytes(blob_path(head)).replace(b"\x02", b"\x03"))
    report = verify(root)
    assert report.corrupt == {head: ["02-depth-2.json"]} and not report.is_intact and not report.missing


def test_a_frozen_tensor_that_moved_is_named_with_its_stage(root: str) -> None:
    write_lineage(root, frozen_check=FrozenCheck(num_tensors=1, before="f", after="g"))
    report = verify(root)
    assert report.moved == ["03-depth-3.json"] and not report.is_intact


def test_orphans_are_reported_and_only_pruning_removes_them(root: str) -> None:
    write_lineage(root)
    store = BlobStore(root)
    orphan = store.put({"left": torch.ones(5)})
    half = f"blobs/ab/.{'ab' * 32}.safetensors.x1.part"
    store.storage.write_bytes(half, b"half")
    before = store.list()
    report = verify(root)
    assert set(report.orphans) == {blob_path(orphan), half} and report.is_intact and report.pruned_bytes == 0
    assert store.list() == before
    size = store.size_bytes(orphan) + len(b"half")
    assert verify(root, prune=True).pruned_bytes == size
    assert verify(root).orphans == [] and verify(root).is_intact and not store.storage.exists(half)


def test_a_broken_chain_is_an_error_that_names_the_link(root: str) -> None:
    write_lineage(root)
    BlobStore(root).storage.remove("manifests/02-depth-2.json")
    with pytest.raises(StoreError, match=r"parent of manifest 03-depth-3\.json"):
        verify(root)


def test_a_branch_left_by_a_repeated_stage_is_checked_too(root: str) -> None:
    manifests = write_lineage(root)
    branch = BlobStore(root).put({"head": torch.full((2,), 9)})
    other = manifests[2].model_copy(update={"name": "other", "head": branch, "new_blobs": (branch,)})
    BlobStore(root).storage.write_bytes(f"manifests/{other.file_name}", other.to_bytes())
    assert verify(root).is_intact and verify(root).num_manifests == 4 and not verify(root).orphans
