"""Specialists as a user starts them: grown at the same time, one killed and started again, merged, resumed for free."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from growtx.growth.ensembles import read_ensemble, verify_ensemble
from growtx.growth.lineage import open_lineage
from growtx.growth.results import load_model
from growtx.models import GrowtxEnsembleForCausalLM
from tests.processes import descendants

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
NUM_STEPS = 300  # long enough that the two train at the same time, whichever starts first
SECONDS = 500
SYLLABLES = {
    "south": ("ka", "lo", "mi", "nu", "te", "ra", "so", "vi", "pe", "du"),
    "north": ("брю", "хол", "зна", "тей", "гор", "лис", "мав", "ноч", "пер", "суд"),
}


def write_texts(home: Path) -> None:
    """Two languages of made-up words."""
    for name, parts in SYLLABLES.items():
        words = [a + b + c for a in parts for b in parts for c in parts[:4]]
        texts = [" ".join(words[(i * i + j * j) % len(words)] for j in range(60)) for i in range(300)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def start(home: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "rayjobs/specialists.py"), "--run-dir", str(home / "run"), *options]
    with (home / "log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def settings(home: Path) -> list[str]:
    specialists = [{"name": name, "data": {"sources": [{"files": f"{home}/{name}.jsonl"}]}} for name in SYLLABLES]
    return [
        f"specialists={json.dumps(specialists)}",
        "model={hidden_size: 32, num_attention_heads: 2, context_length: 32}",
        "tokenizer.vocab_size=400",
        f"plan={{grow: {{blocks: 1}}, train: {{steps: {NUM_STEPS}, learning_rate: 3e-3}}}}",
        "training={global_batch_size: 8, log_every_steps: 1, checkpoint: {every_steps: 25}, "
        "evaluation: {num_windows: 8, num_samples: 1, sample_tokens: 8}}",
        "resources={num_workers: 1, max_failures: 0}",
        "merge={rule: posterior, rules: [mean], num_windows: 8, fit_windows: 6, fit_steps: 10}",
    ]


def steps(home: Path, name: str) -> list[int]:
    path = home / f"run/specialists/{name}/metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row["step"] for row in rows if "train/loss" in row]


def kill_a_worker(process: subprocess.Popen[bytes], home: Path) -> None:
    """Once both train, so that they are known to run at the same time."""
    deadline = time.monotonic() + SECONDS
    while not all(max(steps(home, name), default=0) >= 6 for name in SYLLABLES):
        assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.02)
    workers = descendants("ray::RayTrainWorker", process.pid)
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)


def test_a_killed_specialist_starts_again_alone_and_all_are_merged(tmp_path: Path) -> None:
    write_texts(tmp_path)
    process = start(tmp_path, *settings(tmp_path))
    kill_a_worker(process, tmp_path)
    log = tmp_path / "log"
    assert process.wait(timeout=SECONDS) == 0, log.read_text()
    assert log.read_text().count("failed and is restarted") == 1
    runs = {name: tmp_path / f"run/specialists/{name}" for name in SYLLABLES}
    for name, run in runs.items():
        assert steps(tmp_path, name) == list(range(1, NUM_STEPS + 1))
        assert (run / "report.html").exists() and (run / "model/config.json").exists()
    assert len({open_lineage(str(run)).last.substrate for run in runs.values()}) == 1
    ensemble = str(tmp_path / "run/ensemble")
    assert read_ensemble(ensemble).names == list(SYLLABLES) and verify_ensemble(ensemble) == []
    model, _ = load_model(ensemble)
    assert isinstance(model, GrowtxEnsembleForCausalLM) and model.rule.name == "posterior"
    record = json.loads((tmp_path / "run/ensemble/merge.json").read_text())
    assert record["gain"]["value"] > 0, "specialists of two scripts gain on text in both"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.json") if "manifests" in path.parts}
    assert start(tmp_path, "--resume").wait(timeout=SECONDS) == 0, log.read_text()
    assert all(f"{name}: already finished" in log.read_text() for name in SYLLABLES)
    assert before == {path: path.stat().st_mtime_ns for path in before}
