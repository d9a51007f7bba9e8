"""Sweeps as a user starts them: trials are stopped or fail, the driver is killed, the plan found is repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from growtx.growth.lineage import open_lineage
from growtx.storage import Storage
from growtx.store.trials import TrialRecord, read_trials
from growtx.store.verify import verify
from tests.processes import descendants, kill_the_driver

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
SECONDS = 560
SETTINGS = [
    "plan={grow: {blocks: 1}, train: {steps: 8, learning_rate: 3e-3}}",
    "model={hidden_size: 32, num_attention_heads: 2, context_length: 32}",
    "tokenizer.vocab_size=600",
    "substrate.kind=binary",
    "data.sources=[{microworld: {languages: [en], target_bytes: 300000}}]",
    "training={global_batch_size: 8, evaluation: {num_windows: 16, num_samples: 1, sample_tokens: 4}}",
    "sweep.space={learning_rate: [1.0e-5, 2.0e-5, 1.0e+6]}",
    "sweep.include_planned=true",
    "sweep.scheduler.reduction_factor=4",  # the two bad rates that do train must not pass for each other's better half
]


class Job:
    """A job in a process of its own."""

    def __init__(self, home: Path, script: str, *words: str) -> None:
        self.log = home / "log"
        command = [sys.executable, str(ROOT / f"rayjobs/{script}.py"), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def finish(self) -> int:
        """Wait for a good end; returns the most training workers that were seen alive at one time."""
        deadline, most = time.monotonic() + SECONDS, 0
        while self.process.poll() is None and time.monotonic() < deadline:
            most = max(most, len(descendants("ray::RayTrainWorker", self.process.pid)))
            time.sleep(0.1)
        assert self.process.poll() == 0, self.log.read_text()
        return most


def ended(run: Path) -> dict[int, TrialRecord]:
    records = read_trials(Storage(run)) if run.exists() else []
    return {record.number: record for record in records if record.state != "running"}


def kill_the_driver_after_a_trial(job: Job, run: Path) -> dict[int, TrialRecord]:
    deadline = time.monotonic() + SECONDS
    while not ended(run):
        assert job.process.poll() is None and time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.1)
    kill_the_driver(job.process.pid)
    return ended(run)


def test_a_killed_sweep_goes_on_and_the_plan_it_finds_can_be_repeated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = kill_the_driver_after_a_trial(
        Job(tmp_path, "sweep", "--greedy", "--trials", "5", "--run-dir", str(run), *SETTINGS), run
    )
    most = Job(tmp_path, "sweep", "--run-dir", str(run), "--resume").finish()
    assert most == 2, "two trials at a time, and the worker of a stopped one is gone before another trial begins"
    after = ended(run)
    assert sorted(after) == list(range(5)) and {number: after[number] for number in before} == before
    states = [record.state for record in after.values()]
    assert after[0].planned and after[0].state == "finished", "the plan's rate is the only good one"
    assert "stopped" in states and states.count("finished") < 4, states
    for record in after.values():
        if record.values["learning_rate"] > 1:
            assert record.state in ("failed", "stopped")
    assert verify(str(run)).is_intact and not verify(str(run)).orphans
    assert not (run / "tune").exists() and (run / "report.html").stat().st_size > 10_000
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    again = tmp_path / "again"
    Job(tmp_path, "grow", "--here", "--preset", str(run / "best-plan.yaml"), "--run-dir", str(again)).finish()
    found, repeated = (open_lineage(str(path)).last.metrics["eval/bits_per_byte"] for path in (run, again))
    assert abs(found - repeated) <= 1e-6
