"""Packing on a cluster while its driver, a worker and a node are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from growtx.data.packing import open_packed
from tests.data import packing_child
from tests.processes import descendants

pytestmark = pytest.mark.ray
PROJECT = Path(__file__).parents[2]


def write_texts(directory: Path) -> str:
    directory.mkdir()
    draw = random.Random(0)
    words = ["river", "boat", "harbour", "лодка", "река", "河", "船", "bridge", "ferry", "shore"]
    for number in range(16):
        texts = [f"{number} {row} " + " ".join(draw.choices(words, k=300)) for row in range(500)]
        (directory / f"{number:02}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(directory / "*.jsonl")


def start(files: str, cache: Path, address: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(PROJECT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "tests.data.packing_child", files, str(cache)]
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True)


def shards(cache: Path) -> dict[str, int]:
    """Finished ones, with what tells a file from another of the same name."""
    return {path.parent.name: path.stat().st_ino for path in (cache / "packed").glob("[!.]*/index.json")}


def wait_until(reached: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_that_loses_driver_worker_and_node_packs_what_one_process_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first driver is killed. The second one's cluster then has four CPUs, loses a worker and all but one CPU."""
    from ray.cluster_utils import Cluster

    files, cache = write_texts(tmp_path / "texts"), tmp_path / "cache"
    node = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(**node, num_cpus=3)
        first = start(files, cache, cluster.address)
        wait_until(lambda: len(shards(cache)) >= 3)
        first.kill()
        first.wait()
        done = shards(cache)
        resumed = start(files, cache, cluster.address)
        wait_until(lambda: len(shards(cache)) >= len(done) + 2)
        for worker in descendants("ray::FlatMap")[:1]:
            worker.send_signal(signal.SIGKILL)
        wait_until(lambda: len(shards(cache)) >= len(done) + 6)
        cluster.remove_node(second, allow_graceful=False)
        output, _ = resumed.communicate(timeout=200)
        assert resumed.returncode == 0
    finally:
        cluster.shutdown()
    found = json.loads(output.splitlines()[-1])
    after = shards(cache)
    assert {key: after[key] for key in done} == done, "what was done before the driver was killed is as it was"
    for name in packing_child.LIMITS:
        monkeypatch.setattr(packing_child.sources, name, getattr(packing_child.sources, name))  # put back afterwards
    alone = packing_child.pack(files, str(tmp_path / "alone"))
    together = open_packed(found["path"])
    assert found["fingerprint"] == alone.fingerprint
    for side in ("train", "validation"):
        one, many = getattr(alone, side).sources[0].windows, getattr(together, side).sources[0].windows
        assert len(one.shards) > 15 and (one[:] == many[:]).all()
    together.verify()
