"""Whole runs as a user starts them: what must be equal is equal, and what dies is replaced.

Each test starts `rayjobs/grow.py` in a process of its own, so that killing it is what killing it is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from growtx.growth.lineage import open_lineage
from growtx.store.verify import verify
from tests.processes import descendants, kill_alone, see_that_they_end

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
NUM_STEPS = 24
SYLLABLES = ["ka", "lo", "mi", "nu", "te", "ra", "so", "vi", "pe", "du"]
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[:4]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small corpus in it; runs and caches go there too."""
    path = tmp_path_factory.mktemp("drills")
    documents = [" ".join(WORDS[(i * i + j * j) % len(WORDS)] for j in range(60)) for i in range(400)]
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


class Run:
    """A run in a process of its own."""

    def __init__(self, home: Path, name: str, *overrides: str, resume: bool = False, **environment: str) -> None:
        self.dir = home / name
        command = [sys.executable, str(ROOT / "rayjobs/grow.py"), "--run-dir", str(self.dir)]
        command += ["--resume"] if resume else ["--preset", "real-text"]
        self.log = home / f"{name}.log"
        settings = [
            f"data.sources=[{{files: {home}/texts.jsonl}}]",
            "tokenizer.vocab_size=400",
            "model.hidden_size=32",
            "model.context_length=32",
            f"plan={{grow: {{blocks: 2}}, train: {{steps: {NUM_STEPS}, learning_rate: 3e-3}}}}",
            "training.log_every_steps=1",
            "training.checkpoint.every_steps=6",
            "training.evaluation={num_windows: 8, num_samples: 1, sample_tokens: 8}",
        ]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, *(() if resume else settings), *overrides],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    def rows(self) -> list[dict[str, float]]:
        path = self.dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def losses(self) -> list[tuple[int, int, float]]:
        return [(row["stage"], row["step"], row["train/loss"]) for row in self.rows() if "train/loss" in row]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def reached(self, stage: int, step: int) -> bool:
        return any((row["stage"], row["step"]) >= (stage, step) for row in self.rows())

    def workers(self) -> list[psutil.Process]:
        return descendants("ray::RayTrainWorker", self.process.pid)

    def finish(self, status: int = 0) -> None:
        assert self.process.wait(timeout=400) == status, self.log.read_text()

    def stop(self, number: int) -> None:
        """Ask it to stop: within 30 s it has saved a checkpoint and left."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.finish()
        assert time.monotonic() - start < 30
        assert json.loads((self.dir / "status.json").read_text())["state"] == "stopped"


# Evaluations between the steps, so that signals come inside of the stage; losses stay what they are.
SLOW = ("training.micro_batch_size=1", "training.evaluation={num_windows: 64, num_samples: 1, every_steps: 1}")


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Run:
    run = Run(home, "undisturbed")
    run.finish()
    return run


def assert_same_losses(run: Run, reference: Run, tolerance: float) -> None:
    """Every step of every stage is there exactly once, with the same loss."""
    expected = reference.losses()
    assert [(stage, step) for stage, step, _ in run.losses()] == [(stage, step) for stage, step, _ in expected]
    worst = max(abs(a[2] - b[2]) for a, b in zip(run.losses(), expected, strict=True))
    assert worst <= tolerance


def test_held_out_bits_per_byte_fall_and_nothing_frozen_moves(undisturbed: Run) -> None:
    first, second = open_lineage(str(undisturbed.dir)).manifests
    assert second.metrics["eval/bits_per_byte"] < first.metrics["eval/bits_per_byte"]
    assert first.metrics["eval/bits_per_byte"] < first.metrics["eval/bits_per_byte_start"]
    assert verify(str(undisturbed.dir)).is_intact
    assert second.frozen_check.before == second.frozen_check.after


def test_a_stage_writes_only_what_it_made(undisturbed: Run) -> None:
    first, second = open_lineage(str(undisturbed.dir)).manifests
    assert second.blocks[0] == first.blocks[0]
    assert set(second.new_blobs) == {second.blocks[1].blob, second.head}
    files = list((undisturbed.dir / "blobs").rglob("*.safetensors"))
    assert {file.stem for file in files} == {*first.new_blobs, *second.new_blobs}


def test_the_hugging_face_directory_is_the_last_stage(undisturbed: Run) -> None:
    import torch

    from growtx.growth.results import load_model

    exported, tokenizer = load_model(str(undisturbed.dir / "model"))
    sealed, _ = load_model(str(undisturbed.dir))
    tokens_1T = torch.tensor([tokenizer("the frozen block")["input_ids"]])
    assert torch.equal(exported(input_ids=tokens_1T).logits, sealed(input_ids=tokens_1T).logits)


def test_the_report_is_there_and_checkpoints_are_gone(undisturbed: Run) -> None:
    assert (undisturbed.dir / "report.html").stat().st_size > 10_000
    assert not (undisturbed.dir / "checkpoints").exists()
    assert json.loads((undisturbed.dir / "status.json").read_text())["state"] == "finished"


def test_zero_3_on_one_worker_and_a_prefix_cached_by_a_ray_data_job_have_the_losses_of_zero_1_on_two(
    home: Path, undisturbed: Run
) -> None:
    job = "resources={num_workers: 1, prefix_job: {num_workers: 1}}"
    run = Run(home, "zero-3", "training.zero_stage=3", "training.prefix=cache", f"cache_dir={home}/cache-zero-3", job)
    run.finish()
    assert_same_losses(run, undisturbed, 1e-3)
    assert open_lineage(str(run.dir)).last.metrics["prefix_cached"]
    assert list((home / "cache-zero-3" / "prefix").rglob("*.npy"))


def test_a_killed_worker_is_replaced_and_losses_are_the_undisturbed_ones(home: Path, undisturbed: Run) -> None:
    run = Run(home, "worker-killed")
    run.wait_for(lambda: run.reached(stage=2, step=9))
    run.workers()[-1].send_signal(signal.SIGKILL)
    run.finish()
    assert_same_losses(run, undisturbed, 1e-6)
    assert open_lineage(str(run.dir)).last.head == open_lineage(str(undisturbed.dir)).last.head


def test_a_stage_goes_on_after_everything_that_may_interrupt_it_on_two_one_and_two_workers(
    home: Path, undisturbed: Run
) -> None:
    """Stopped while the process that carries the request is dead, killed, stopped in training and at its start.

    The driver after the killed one comes at once, while its workers still train. Ctrl-C is the signal that Ray Train
    would handle by itself; `ray job stop` sends the other one, SIGTERM.
    """
    own = (f"cache_dir={home}/cache", "training.prefix=cache")
    run = Run(home, "moved", *SLOW, *own, "resources.num_workers=2")
    run.wait_for(lambda: run.reached(stage=2, step=3))
    (carrier,) = descendants("ray::ProgressActor", run.process.pid)
    carrier.kill()
    time.sleep(0.5)
    run.stop(signal.SIGTERM)
    assert_it_stopped_in_the_stage(run)

    run = Run(home, "moved", resume=True)
    run.wait_for(lambda: run.reached(stage=2, step=9))
    orphans = kill_alone(run.process.pid)
    first = open_lineage(str(run.dir)).manifests[0]
    log, fence = run.dir / "metrics.jsonl", run.dir / "fence"
    rare = "training.checkpoint.every_steps=1000"  # what is found after the stop was saved by it
    run = Run(home, "moved", "resources.num_workers=1", "training.zero_stage=2", rare, resume=True)
    # Orphans write nothing after the takeover, so what comes then is the new workers', who first take back the rows
    # that have no checkpoint.
    run.wait_for(lambda: int(fence.read_text()) == 3)
    run.wait_for(lambda: log.stat().st_mtime > fence.stat().st_mtime and run.reached(stage=2, step=10))
    see_that_they_end(orphans)
    run.stop(signal.SIGINT)
    assert_it_stopped_in_the_stage(run)

    run = Run(home, "moved", "resources.num_workers=2", "training.zero_stage=1", resume=True)
    run.wait_for(lambda: bool(descendants("ray::", run.process.pid)))
    run.stop(signal.SIGTERM)  # before there are workers that could be told
    damage(home / "cache")
    run = Run(home, "moved", resume=True)
    run.finish()
    assert_same_losses(run, undisturbed, 1e-3)
    assert open_lineage(str(run.dir)).manifests[0] == first


def assert_it_stopped_in_the_stage(run: Run) -> None:
    saved_at = run.rows()[-1]["step"]
    assert saved_at < NUM_STEPS
    assert max(path.name for path in (run.dir / "checkpoints/stage-02").iterdir()) == f"step-{saved_at:08d}"


def damage(cache: Path) -> None:
    """What a bad disk does to packed data and to shards of activations: a third of each is something else."""
    found = [*cache.rglob("*.arrow"), *cache.rglob("*.npy")]
    assert {file.suffix for file in found} == {".arrow", ".npy"}
    for file in found:
        data = bytearray(file.read_bytes())
        third = len(data) // 3
        data[third : 2 * third] = bytes(byte ^ 0x55 for byte in data[third : 2 * third])
        file.write_bytes(data)


def test_an_elastic_group_takes_a_node_that_comes_and_goes_on_without_one_that_went(home: Path) -> None:
    from ray.cluster_utils import Cluster

    long = "plan={grow: {blocks: 2}, train: {steps: 80, learning_rate: 3e-3}}"  # both changes come inside of it
    reference = Run(home, "not-elastic", "--here", long, "resources.num_workers=1")
    reference.finish()
    node = {"object_store_memory": 80 << 20, "num_cpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        group = "resources={num_workers: [1, 2], resize_seconds: 2}"
        soon = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}  # that it waits for a node that has gone
        run = Run(home, "elastic", *SLOW, long, group, RAY_ADDRESS=cluster.address, **soon)
        run.wait_for(lambda: run.reached(stage=1, step=7))
        assert len(descendants("ray::RayTrainWorker")) == 1
        second = cluster.add_node(**node)
        run.wait_for(lambda: len(descendants("ray::RayTrainWorker")) == 2)
        run.wait_for(lambda: run.reached(stage=2, step=7))
        assert len(descendants("ray::RayTrainWorker")) == 2
        cluster.remove_node(second, allow_graceful=False)
        run.finish()
    finally:
        cluster.shutdown()
    assert_same_losses(run, reference, 1e-3)
    assert open_lineage(str(run.dir)).last.metrics["num_workers"] == 1
