"""A run on a real S3 server: what is uploaded, what others see at once, and trouble told in a sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from growtx.exceptions import FencedError, StoreError
from growtx.fence import take_over
from growtx.storage import Storage
from growtx.store.run_lock import fenced
from growtx.store.runs import METRICS_FILE, PARTS_DIR, MetricsLog, list_runs, read_metrics
from growtx.store.verify import verify
from growtx.train.tracking import TensorBoardLog
from tests.crash.harness import Outcome
from tests.object_store import ObjectStore
from tests.run.configs import write_corpus

ROOT = Path(__file__).parents[2]
GROW = """
import sys
from tests.crash.child import grow_here, without_figures
home, corpus, *run_dirs = sys.argv[1:]
without_figures()
for run_dir in run_dirs:
    assert grow_here(run_dir, f"{home}/cache", corpus) == 0
"""


def test_a_run_on_an_object_store_is_the_run_on_a_disk(object_store: ObjectStore, tmp_path: Path) -> None:
    """The third of these runs finds that there is nothing left to do."""
    local, remote = str(tmp_path / "local"), object_store.bucket() + "/run"
    before = object_store.num_bytes
    words = [str(tmp_path), write_corpus(tmp_path), local, remote, remote]
    done = subprocess.run([sys.executable, "-c", GROW, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Outcome.of(remote) == Outcome.of(local)
    assert verify(remote).is_intact and not verify(remote).orphans
    run = Storage(remote)
    assert run.exists(METRICS_FILE) and not run.list_names(PARTS_DIR), "the parts were joined"
    stored = sum(run.size_bytes(file) for file in run.list_files())
    assert object_store.num_bytes - before < 6 * stored, "with checkpoints, and the model's directory twice"


def test_rows_are_uploaded_once_and_once_more_when_they_are_joined(object_store: ObjectStore) -> None:
    run = Storage(object_store.bucket() + "/run")
    log, before = MetricsLog(run), object_store.num_bytes
    rows = [{"stage": 1, "step": step, "train/loss": step / 7, "note": "x" * 100} for step in range(2000)]
    for row in rows:
        log.append(row)
    log.join()
    assert read_metrics(run) == rows
    assert object_store.num_bytes - before < 2.2 * run.size_bytes(METRICS_FILE)


def test_rows_are_seen_before_they_are_joined_and_a_crash_while_joining_counts_none_twice(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Storage(object_store.bucket() + "/run")
    run.write_text("run.yaml", "name: x\n")
    rows = [{"stage": 1, "step": step, "num_tokens": step, "eval/loss": 1.0} for step in range(3)]
    log = MetricsLog(run)
    for row in rows:
        log.append(row)
    assert read_metrics(run) == rows and not run.exists(METRICS_FILE)
    assert [summary.num_tokens for summary in list_runs(run.root)] == [2]

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            log.join()
    assert run.exists(METRICS_FILE) and run.list_names(PARTS_DIR) and read_metrics(run) == rows
    MetricsLog(run).rewind(stage=1, step=1)
    assert read_metrics(run) == rows[:2] and not run.list_names(PARTS_DIR)


def test_what_another_client_writes_is_seen_at_once(object_store: ObjectStore) -> None:
    address = object_store.bucket() + "/run"
    here, there = Storage(address), Storage(address)
    here.write_text("manifests/a.json", "1")
    assert [len(one.list_files("manifests")) for one in (here, there)] == [1, 1]
    write = f"from growtx.storage import Storage; Storage({address!r}).write_text('manifests/b.json', '22')"
    subprocess.run([sys.executable, "-c", write], cwd=ROOT, check=True)
    assert here.list_files("manifests", ".json") == ["manifests/a.json", "manifests/b.json"]
    assert here.exists("manifests/b.json") and here.list_names("manifests") == ["a.json", "b.json"]
    assert here.size_bytes("manifests/b.json") == 2


def test_whoever_takes_a_run_over_keeps_the_old_workers_out(object_store: ObjectStore) -> None:
    address = object_store.bucket() + "/run"
    mine = fenced(Storage(address))
    mine.write_text("a.txt", "mine")
    take_over(address)
    with pytest.raises(FencedError):
        mine.write_text("a.txt", "too late")
    assert mine.read_text("a.txt") == "mine"


def test_closed_files_of_tensorboard_are_uploaded_once(object_store: ObjectStore) -> None:
    run = Storage(object_store.bucket() + "/run")
    log = TensorBoardLog(run)
    sizes = []
    for stage in range(3):
        before = object_store.num_requests.get("PUT", 0)
        log.add({"num_tokens": stage, "train/loss": 1.0})
        log.close()
        sizes.append(object_store.num_requests["PUT"] - before)
    assert sizes == [1, 1, 1] and len(run.list_files("tensorboard")) == 3


@pytest.fixture(autouse=True)
def new_client() -> Iterator[None]:
    """The client of this test shares nothing with those before and after it."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


ASKED: dict[str, Callable[[Storage], object]] = {
    "exists": lambda run: run.exists("a.txt"),
    "read": lambda run: run.read_bytes("a.txt"),
    "size": lambda run: run.size_bytes("a.txt"),
    "modified": lambda run: run.modified("a.txt"),
    "list": lambda run: run.list_files("a.txt"),
    "names": lambda run: run.list_names("a.txt"),
    "tail": lambda run: run.read_tail("a.txt"),
    "write": lambda run: run.write_text("a.txt", "y"),
    "append": lambda run: run.append_text("a.txt", "y"),
    "large file": lambda run: run.write_file("a.txt", lambda file: file.write(b"y")),
    "remove": lambda run: run.remove("a.txt"),
    "fence": fenced,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("trouble", ["no credentials", "refused", "nobody there"])
def test_trouble_with_the_store_is_a_sentence(
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trouble: str,
    ask: Callable[[Storage], object],
) -> None:
    address = object_store.bucket() + "/run"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if trouble == "no credentials":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    elif trouble == "refused":
        monkeypatch.setattr(object_store, "is_down", True)
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=rf"{address}.* cannot be (read|written): .*\. Check the address, the network"):
        ask(Storage(address))
