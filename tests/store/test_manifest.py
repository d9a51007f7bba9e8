"""Manifests: a chain that shows every change, written so that a crash never leaves half of one."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path

import pytest

from growtx.exceptions import StoreError
from growtx.storage import Storage
from growtx.store.manifest import (
    LATEST,
    BlockRef,
    Manifest,
    latest_manifest,
    list_manifests,
    parse_manifest,
    read_lineage,
    read_manifest,
    write_manifest,
)
from tests.store.manifests import manifest, write_lineage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4()}/run")


def test_a_manifest_is_read_back_as_it_was_written(storage: Storage) -> None:
    written = manifest(
        1,
        None,
        blocks=(BlockRef(blob="0" * 64, adapters=("1" * 64,)),),
        metrics={"eval/loss": 0.1 + 0.2},
        samples=({"prompt": "ж", "text": "з"},),
    )
    path = write_manifest(storage, written)
    assert path == "manifests/01-depth-1.json" and read_manifest(storage, "01-depth-1.json") == written
    assert storage.read_text(LATEST) == "01-depth-1.json\n"


def test_the_digest_is_the_sha256sum_of_the_file(storage: Storage) -> None:
    written = manifest(1, None)
    assert hashlib.sha256(storage.read_bytes(write_manifest(storage, written))).hexdigest() == written.digest()


def test_a_lineage_is_the_chain_of_parents_up_to_the_latest_or_a_named_one(storage: Storage) -> None:
    manifests = write_lineage(storage.root)
    assert read_lineage(storage) == manifests
    assert read_lineage(storage, "02-depth-2.json") == manifests[:2]
    assert latest_manifest(storage) == manifests[-1]


def test_the_pointer_never_names_a_manifest_that_is_not_there(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, write = [], Storage.write_bytes

    def noted(self: Storage, relative: str, data: bytes) -> None:
        order.append(relative)
        write(self, relative, data)

    monkeypatch.setattr(Storage, "write_bytes", noted)
    write_manifest(storage, manifest(1, None))
    assert order == ["manifests/01-depth-1.json", LATEST]


def test_there_is_no_lineage_before_the_first_stage_is_finished(storage: Storage) -> None:
    assert latest_manifest(storage) is None and read_lineage(storage) == [] and list_manifests(storage) == []


def test_a_crash_between_manifest_and_pointer_does_not_lose_the_stage(storage: Storage) -> None:
    manifests = write_lineage(storage.root)
    storage.write_text(LATEST, "02-depth-2.json\n")
    assert latest_manifest(storage) == manifests[-1] and read_lineage(storage) == manifests


def test_a_stage_whose_manifest_was_deleted_can_be_repeated(storage: Storage) -> None:
    manifests = write_lineage(storage.root)
    storage.remove("manifests/03-depth-3.json")
    assert latest_manifest(storage) == manifests[1]


def test_manifests_are_listed_in_the_order_of_their_stages_and_other_files_are_not(storage: Storage) -> None:
    for index in (2, 11, 100, 10, 1):
        write_manifest(storage, manifest(index, None))
    storage.write_text("manifests/notes.json", "{}")
    storage.write_text("manifests/.12-x.json.abc.part", "{")
    assert [int(name.split("-")[0]) for name in list_manifests(storage)] == [1, 2, 10, 11, 100]
    newest = latest_manifest(storage)
    assert newest is not None and newest.index == 100


def test_a_missing_parent_is_named(storage: Storage) -> None:
    write_lineage(storage.root)
    storage.remove("manifests/01-depth-1.json")
    with pytest.raises(StoreError, match=r"parent of manifest 02-depth-2\.json in .* is missing or was changed"):
        read_lineage(storage)


def test_a_parent_that_was_changed_afterwards_is_noticed(storage: Storage) -> None:
    manifests = write_lineage(storage.root)
    write_manifest(storage, manifests[0].model_copy(update={"num_tokens": 99}))
    with pytest.raises(StoreError, match=r"parent of manifest 02-depth-2\.json"):
        read_lineage(storage, "03-depth-3.json")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"format_version": 1, "na', "manifest here is damaged: it is not JSON"),
        (b"\xff\xfe\x00", "manifest here is damaged: it is not JSON"),
        (b"", "manifest here is damaged: it is not JSON"),
        (b"[1]", "manifest here has format version None, but this version of growtx reads 1"),
        (
            b'{"format_version": 2, "shape": 3}',
            "manifest here has format version 2, but this version of growtx reads 1",
        ),
        (b'{"format_version": 1}', "manifest here is damaged: name: field required"),
    ],
)
def test_a_damaged_or_newer_manifest_is_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(StoreError) as caught:
        parse_manifest(data, "here")
    assert str(caught.value).startswith(sentence)


def test_a_key_that_this_version_does_not_know_is_not_ignored(storage: Storage) -> None:
    tree = json.loads(manifest(1, None).to_bytes()) | {"precision": "fp8"}
    with pytest.raises(StoreError, match="damaged: precision: extra inputs are not permitted"):
        parse_manifest(json.dumps(tree).encode(), "here")


def test_a_full_disk_keeps_the_stages_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    manifests = write_lineage(storage.root, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        write_manifest(storage, manifest(3, manifests[-1]))
    assert read_lineage(storage) == manifests


def test_a_manifest_names_every_blob_of_its_model() -> None:
    substrate, block, adapter, other, top, head = (str(at) * 64 for at in range(6))
    blocks = (BlockRef(blob=block, adapters=(adapter, other)), BlockRef(blob=top))
    found: Manifest = manifest(1, None, substrate=substrate, blocks=blocks, head=head)
    assert found.blobs() == [substrate, block, adapter, other, top, head] and found.num_blocks == 2


def test_the_digest_of_a_manifest_does_not_change_with_the_program() -> None:
    """Chains are links by the hash of a file: a new field with a default would break those of earlier versions."""
    data = (Path(__file__).parent / "manifest-of-format-1.json").read_bytes()
    assert parse_manifest(data, "here").digest() == hashlib.sha256(data).hexdigest()
