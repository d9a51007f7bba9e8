"""After a takeover nothing of the old processes reaches the run: neither a file nor a row nor a removal."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.exceptions import ConfigError, FencedError
from growtx.fence import FENCE_FILE, Fence, take_over
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.store.run_lock import acquire, fenced
from growtx.train.job import TrainJob

WRITES: dict[str, Callable[[Storage, str], object]] = {
    "write": lambda storage, _: storage.write_text("a.txt", "old"),
    "write a large file": lambda storage, _: storage.write_file("b.bin", lambda file: file.write(b"old")),
    "append": lambda storage, _: storage.append_text("rows.txt", "old"),
    "remove": lambda storage, _: storage.remove("a.txt"),
    "replace": lambda storage, here: storage.replace_directory(here, "model", last="x"),
    "child": lambda storage, _: storage.child("trials").write_text("a.txt", "old"),
    "blob": lambda storage, _: BlobStore(storage).put({"a": torch.rand(2)}),
}


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4()}/run"
    Storage(root).write_text("a.txt", "new")
    return root


@pytest.fixture
def here(tmp_path: Path) -> str:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/x").write_text("old")
    return str(tmp_path / "here")


def content(root: str) -> dict[str, bytes]:
    storage = Storage(root)
    return {name: storage.read_bytes(name) for name in storage.list_files()}


@pytest.mark.parametrize("kind", WRITES)
def test_no_write_of_the_old_driver_s_processes_reaches_the_run(kind: str, root: str, here: str) -> None:
    old = Storage(root, fences=(take_over(root),))
    WRITES[kind](pickle.loads(pickle.dumps(old)), here)
    new = Storage(root, fences=(take_over(root),))
    new.write_text("a.txt", "new")
    before = content(root)
    for storage in (old, pickle.loads(pickle.dumps(old))):
        with pytest.raises(FencedError, match="another process has taken over"):
            WRITES[kind](storage, here)
    assert content(root) == before and old.read_text("a.txt") == "new", "reading asks nothing"
    WRITES[kind](new, here)


def test_where_the_run_is_gone_nothing_is_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    storage = Storage(str(run), fences=(take_over(str(run)),))
    (run / FENCE_FILE).unlink()
    with pytest.raises(FencedError):
        storage.write_text("a.txt", "x")
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("text", ["", "x", "12", "-1"])
def test_a_damaged_fence_lets_nobody_pass_and_can_be_taken_over(text: str, tmp_path: Path) -> None:
    fence = take_over(str(tmp_path))
    (tmp_path / FENCE_FILE).write_text(text)
    assert not fence.is_current
    assert take_over(str(tmp_path)).is_current


def test_taking_over_waits_for_a_write_that_is_under_way(tmp_path: Path) -> None:
    """So the last row of the old workers is there when the new driver reads the run."""
    old, order = take_over(str(tmp_path)), []
    inside = threading.Event()

    def write() -> None:
        with old.permitted():
            inside.set()
            time.sleep(0.3)
            order.append("written")

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(10)
    new = take_over(str(tmp_path))
    order.append("taken over")
    thread.join()
    assert order == ["written", "taken over"] and new.is_current and not old.is_current


def test_a_writer_that_does_not_end_is_named_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("growtx.fence.PATIENCE_SECONDS", 0.1)
    old = take_over(str(tmp_path))
    with old.permitted(), pytest.raises(ConfigError, match="still being written to by a worker"):
        take_over(str(tmp_path))
    assert old.is_current


OTHER = """
import sys
from growtx.storage import Storage
from growtx.store.run_lock import acquire, fenced
acquire(Storage(sys.argv[1]))
print(fenced(Storage(sys.argv[1])).fences[0].epoch, flush=True)
"""


def test_a_process_keeps_its_fence_and_every_other_one_counts_up(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    epochs = [int(subprocess.check_output([sys.executable, "-c", OTHER, run])) for _ in range(2)]
    acquire(Storage(run))
    own = fenced(Storage(run))
    assert [*epochs, own.fences[0].epoch, fenced(Storage(run)).fences[0].epoch] == [1, 2, 3, 3]
    (tmp_path / "run" / FENCE_FILE).unlink()
    assert fenced(Storage(run)).fences[0].is_current


def test_a_job_brings_its_fence_to_the_workers(tmp_path: Path) -> None:
    fence = take_over(str(tmp_path))
    schema: Any = TrainJob.model_fields["fences"]
    assert schema.default == (), "jobs of tests and benchmarks write without asking"
    job = TrainJob.model_construct(run_dir=str(tmp_path), shared_dir=None, fences=(fence,))
    assert job.run_storage.fences == job.blobs.storage.fences == (Fence(str(tmp_path), 1),)
