"""Verification: everything that a manifest needs is there and as it was stored; the rest can be removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
import torch

from growtx.exceptions import ConfigError, StoreError
from growtx.storage import Storage
from growtx.store.blobs import BlobStore, blob_path
from growtx.store.manifest import FrozenCheck, Manifest, write_manifest
from growtx.store.run_lock import acquire
from growtx.store.verify import verify
from tests.store.manifests import manifest, write_lineage
from tests.store.test_run_lock import OTHER


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
    assert verify(root, prune=True, min_age=timedelta(0)).pruned_bytes == size
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


# Pruning takes only what is certainly nobody's.


def put(root: str, number: float, *, hours: float = 2) -> str:
    """A blob that was stored some hours ago."""
    store = BlobStore(root)
    blob = store.put({"tensor": torch.full((4,), float(number))})
    age(Path(root) / blob_path(blob), hours)
    return blob


def age(path: Path, hours: float) -> None:
    then = path.stat().st_mtime - 3600 * hours
    os.utime(path, (then, then))


def left(root: str) -> set[str]:
    """What is there after pruning."""
    verify(root, prune=True)
    return set(BlobStore(root).list())


@pytest.fixture
def run(tmp_path: Path) -> str:
    write_lineage(str(tmp_path / "run"), 1)
    return str(tmp_path / "run")


def test_what_a_stage_is_just_storing_is_not_pruned(run: str) -> None:
    young, old = put(run, 11, hours=0.5), put(run, 12)
    part, old_part = (Path(run) / "blobs/ab" / f".{name}.safetensors.x.part" for name in "ab")
    for path in (part, old_part):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    age(old_part, 2)
    report = verify(run, prune=True)
    assert young in BlobStore(run).list() and old not in BlobStore(run).list()
    assert part.exists() and not old_part.exists() and len(report.kept) == 2
    assert BlobStore(run).put({"tensor": torch.full((4,), 11.0)}) == young


def test_a_blob_that_is_stored_once_more_is_young_again(run: str, tmp_path: Path) -> None:
    again, copied = put(run, 11), put(run, 12)
    BlobStore(run).put({"tensor": torch.full((4,), 11.0)})
    other = BlobStore(str(tmp_path / "other"))
    other.put({"tensor": torch.full((4,), 12.0)})
    BlobStore(run).copy_from(other, copied)
    assert {again, copied} <= left(run)


def trial(run: str, stage: int, number: int, parent: Manifest | None, value: float) -> str:
    blob = put(run, value)
    made = manifest(stage, parent, name="sweep", head=blob, substrate=blob, new_blobs=(blob,))
    write_manifest(Storage(run).child(f"trials/stage-{stage:02d}/{number:03d}"), made)
    return blob


def test_trials_of_a_sweep_that_goes_on_are_not_pruned_and_losers_are(run: str) -> None:
    losers = {trial(run, 1, number, None, 30 + number) for number in range(2)}
    open_trials = {trial(run, 2, number, None, 40 + number) for number in range(2)}
    kept = left(run)
    assert open_trials <= kept and not losers & kept


def test_a_damaged_trial_is_not_taken_for_one_that_needs_nothing(run: str) -> None:
    blob = trial(run, 2, 0, None, 40)
    path = next(Path(run).glob("trials/*/*/manifests/*.json"))
    path.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        verify(run, prune=True)
    assert blob in BlobStore(run).list()


@pytest.mark.parametrize(("name", "key"), [("substrate.json", "blob"), ("ensemble.json", "rule_blob")])
def test_what_a_prepared_run_and_an_ensemble_refer_to_is_not_pruned(name: str, key: str, tmp_path: Path) -> None:
    root = str(tmp_path)
    needed, other = put(root, 1), put(root, 2)
    (tmp_path / name).write_text(json.dumps({key: needed}))
    assert left(root) == {needed}
    (tmp_path / name).write_text(json.dumps({key: None}))
    assert verify(root).is_intact and len(verify(root).orphans) == 1
    (tmp_path / name).write_text("")
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        verify(root, prune=True)
    (tmp_path / name).write_text(json.dumps({key: other}))
    assert verify(root).missing == {other: [name]}
    assert left(root) == {needed}, "nothing is removed where something is missing"


def test_a_run_in_work_is_not_pruned(run: str, tmp_path: Path) -> None:
    blob = put(run, 11)
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"is in use by process {other.pid}"):
            verify(run, prune=True)
        assert verify(run).is_intact
        other.kill()
    assert blob in BlobStore(run).list()


def test_whoever_works_on_a_run_may_prune_it_under_any_name(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(run).parent)
    acquire(Storage("run"))
    (Path(run).parent / "link").symlink_to(run)
    blob = put(run, 11)
    for root in (run, "run", str(Path(run).parent / "link")):
        assert blob not in left(root)
    assert Storage(run).exists("lock")


def test_without_locks_a_run_is_pruned_only_when_it_has_ended() -> None:
    root = f"memory://{uuid.uuid4()}/run"
    write_lineage(root)
    storage = Storage(root)
    storage.write_text("run.yaml", "name: run\n")
    for state in ("running", "", "odd"):
        storage.write_text("status.json", json.dumps({"state": state}))
        with pytest.raises(ConfigError, match="may be in work, and object stores have no locks"):
            verify(root, prune=True)
    storage.write_text("status.json", json.dumps({"state": "stopped"}))
    assert verify(root, prune=True).is_intact


def test_what_is_young_is_told_by_the_clock_that_dates_the_files(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of this machine is two hours ahead of that of the file server."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=2)

    monkeypatch.setattr("growtx.store.verify.datetime", Ahead)
    young, old = put(run, 11, hours=0.5), put(run, 12)
    kept = left(run)
    assert young in kept and old not in kept
