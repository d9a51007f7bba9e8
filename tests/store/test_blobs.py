"""Blobs: the name is the content, what is damaged is noticed, and nothing is written twice."""

from __future__ import annotations

import hashlib
import subprocess
import uuid
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growtx.exceptions import CorruptBlobError, StoreError
from growtx.storage import Storage
from growtx.store.blobs import BlobStore, blob_path, canonical_bytes, hash_tensors

TENSORS = {
    "weight": torch.arange(12.0).view(3, 4),
    "bias": torch.tensor([1.0, -2.0, 3.0]),
    "half": torch.tensor([0.5, 1.5], dtype=torch.bfloat16),
    "scaling": torch.tensor(2.0),
}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4()}/run")


@settings(max_examples=30, deadline=None)
@given(st.permutations(sorted(TENSORS)))
def test_bytes_do_not_depend_on_the_order_of_names(order: list[str]) -> None:
    assert canonical_bytes({name: TENSORS[name] for name in order}) == canonical_bytes(TENSORS)


def test_bytes_do_not_depend_on_how_a_tensor_lies_in_memory() -> None:
    transposed = {"weight": torch.arange(12.0).view(3, 4).t().contiguous().t()}
    part = {"weight": torch.arange(24.0).view(6, 4)[:3]}
    trained = {"weight": torch.nn.Parameter(TENSORS["weight"].clone())}
    hashes = {hash_tensors(tensors) for tensors in (transposed, part, trained)}
    assert hashes == {hash_tensors({"weight": TENSORS["weight"]})}


@pytest.mark.parametrize(
    "other",
    [
        {"weight": torch.zeros(3), "b": torch.zeros(1)},
        {"a": torch.zeros(3), "b": torch.zeros(1, dtype=torch.float64)},
        {"a": torch.zeros(3, 1), "b": torch.zeros(1)},
        {"a": torch.tensor([0.0, 0.0, -0.0]), "b": torch.zeros(1)},
    ],
)
def test_another_name_type_shape_or_bit_is_another_blob(other: dict[str, torch.Tensor]) -> None:
    assert hash_tensors(other) != hash_tensors({"a": torch.zeros(3), "b": torch.zeros(1)})


def test_a_blob_is_named_by_the_sha256sum_of_its_file(tmp_path: Path) -> None:
    blob = BlobStore(str(tmp_path)).put(TENSORS)
    path = tmp_path / "blobs" / blob[:2] / f"{blob}.safetensors"
    printed = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == blob == hash_tensors(TENSORS) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_put_is_got_back_bit_for_bit(store: BlobStore) -> None:
    found = store.get(store.put(TENSORS))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_putting_again_writes_nothing(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path))
    path = tmp_path / blob_path(store.put(TENSORS))
    before = path.stat()
    assert store.put(dict(reversed(TENSORS.items()))) == path.stem
    after = path.stat()
    assert before.st_ino == after.st_ino, "the file was not written anew, only made young"
    assert store.list() == [path.stem]


def damage(storage: Storage, blob: str) -> None:
    data = bytearray(storage.read_bytes(blob_path(blob)))
    data[-1] ^= 1
    storage.write_bytes(blob_path(blob), bytes(data))


def test_putting_repairs_a_damaged_blob(store: BlobStore) -> None:
    blob = store.put(TENSORS)
    damage(store.storage, blob)
    assert not store.is_intact(blob)
    assert store.put(TENSORS) == blob and store.is_intact(blob)


def test_a_changed_bit_is_noticed_on_reading_and_named(store: BlobStore) -> None:
    blob = store.put(TENSORS)
    damage(store.storage, blob)
    with pytest.raises(CorruptBlobError, match=f"{blob}.safetensors is corrupt: its bytes do not hash to its name"):
        store.get(blob)


def test_a_blob_cut_short_is_noticed(store: BlobStore) -> None:
    blob = store.put(TENSORS)
    store.storage.write_bytes(blob_path(blob), store.storage.read_bytes(blob_path(blob))[:-5])
    with pytest.raises(CorruptBlobError):
        store.get(blob)


def test_a_file_that_has_its_hash_as_name_but_is_no_blob_is_noticed(store: BlobStore) -> None:
    blob = hashlib.sha256(b"no tensors").hexdigest()
    store.storage.write_bytes(blob_path(blob), b"no tensors")
    with pytest.raises(CorruptBlobError, match="not a safetensors file"):
        store.get(blob)


def test_a_missing_blob_is_named(store: BlobStore) -> None:
    with pytest.raises(StoreError, match=f"blob {'ab' * 32} is missing from .*Restore the file from a copy"):
        store.get("ab" * 32)
    assert not store.is_intact("ab" * 32)


def test_a_blob_is_taken_over_from_another_store_unless_it_is_damaged_there(store: BlobStore, tmp_path: Path) -> None:
    source = BlobStore(str(tmp_path / "source"))
    blob = source.put(TENSORS)
    store.copy_from(source, blob)
    assert store.is_intact(blob) and store.size_bytes(blob) == source.size_bytes(blob)
    damage(source.storage, blob)
    store.copy_from(source, blob)  # already here: the source is not even read
    with pytest.raises(CorruptBlobError):
        BlobStore(str(tmp_path / "third")).copy_from(source, blob)


def test_a_full_disk_leaves_no_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(str(tmp_path))
    first = store.put({"a": torch.zeros(3)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        store.put(TENSORS)
    assert store.list() == [first]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{first}.safetensors"]
