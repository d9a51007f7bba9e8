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
from growtx.specialists.additions import read_additions
from growtx.storage import Storage
from tests.processes import descendants, kill_the_driver

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
NUM_STEPS = 300  # long enough that the two train at the same time, whichever starts first
SECONDS = 500
SYLLABLES = {
    "south": ("ka", "lo", "mi", "nu", "te", "ra", "so", "vi", "pe", "du"),
    "north": ("брю", "хол", "зна", "тей", "гор", "лис", "мав", "ноч", "пер", "суд"),
}


def write_texts(home: Path, languages: dict[str, tuple[str, ...]]) -> None:
    """Languages of made-up words."""
    for name, parts in languages.items():
        words = [a + b + c for a in parts for b in parts for c in parts[:4]]
        texts = [" ".join(words[(i * i + j * j) % len(words)] for j in range(60)) for i in range(300)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def start(home: Path, *options: str) -> subprocess.Popen[bytes]:
    return launch(home, str(ROOT / "rayjobs/specialists.py"), "--run-dir", str(home / "run"), *options)


def launch(home: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, *words]
    with (home / "log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def settings(home: Path) -> list[str]:
    specialists = [{"name": name, "data": {"sources": [{"files": f"{home}/{name}.jsonl"}]}} for name in SYLLABLES]
    return [
        f"specialists={json.dumps(specialists)}",
        "trunk=null",
        "control=false",
        "model={hidden_size: 32, num_attention_heads: 2, context_length: 32}",
        "tokenizer.vocab_size=400",
        f"plan={{grow: {{blocks: 1}}, train: {{steps: {NUM_STEPS}, learning_rate: 3e-3}}}}",
        "training={global_batch_size: 8, log_every_steps: 1, checkpoint: {every_steps: 25}, "
        "evaluation: {num_windows: 8, num_samples: 1, sample_tokens: 8}}",
        "resources={num_workers: 1, max_failures: 0}",
        "merge={rule: posterior, rules: [mean], num_windows: 8, fit_windows: 6, fit_steps: 10}",
    ]


def steps(home: Path, name: str) -> list[int]:
    path = home / f"run/{name}/metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row["step"] for row in rows if "train/loss" in row]


def kill_a_worker(process: subprocess.Popen[bytes], home: Path) -> None:
    """Once both train, so that they are known to run at the same time."""
    deadline = time.monotonic() + SECONDS
    while not all(max(steps(home, f"specialists/{name}"), default=0) >= 6 for name in SYLLABLES):
        assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.02)
    workers = descendants("ray::RayTrainWorker", process.pid)
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)


def test_a_killed_specialist_starts_again_alone_and_all_are_merged(tmp_path: Path) -> None:
    write_texts(tmp_path, SYLLABLES)
    process = start(tmp_path, *settings(tmp_path))
    kill_a_worker(process, tmp_path)
    log = tmp_path / "log"
    assert process.wait(timeout=SECONDS) == 0, log.read_text()
    assert log.read_text().count("failed and is restarted") == 1
    runs = {name: tmp_path / f"run/specialists/{name}" for name in SYLLABLES}
    for name, run in runs.items():
        assert steps(tmp_path, f"specialists/{name}") == list(range(1, NUM_STEPS + 1))
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


WEST = {"west": ("Öst", "qua", "zwi", "ßen", "pfo", "tsch", "äch", "ück", "gru", "blau")}
NUM_TRUNK_STEPS, NUM_BRANCH_STEPS = 120, 80


def when_it_has_trained(process: subprocess.Popen[bytes], home: Path, name: str, num_steps: int = 6) -> None:
    deadline = time.monotonic() + SECONDS
    while max(steps(home, name), default=0) < num_steps:
        assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.02)


def test_a_trunk_its_branches_and_an_addition_go_on_after_every_interruption(tmp_path: Path) -> None:
    write_texts(tmp_path, {**SYLLABLES, **WEST})
    trunk = f"trunk={{plan: {{grow: {{blocks: 1}}, train: {{steps: {NUM_TRUNK_STEPS}, learning_rate: 3e-3}}}}}}"
    branch = f"plan={{grow: {{blocks: 1}}, train: {{steps: {NUM_BRANCH_STEPS}, learning_rate: 3e-3}}}}"
    log, home = tmp_path / "log", tmp_path / "run"
    process = start(tmp_path, *settings(tmp_path), trunk, branch)
    when_it_has_trained(process, tmp_path, "trunk")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=SECONDS) == 0, log.read_text()
    assert not (home / "specialists").exists() and "stopped; continue with" in log.read_text()
    process = start(tmp_path, "--resume")
    when_it_has_trained(process, tmp_path, "specialists/south")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=SECONDS) == 0, log.read_text()
    assert not (home / "ensemble").exists()
    assert start(tmp_path, "--resume").wait(timeout=SECONDS) == 0, log.read_text()
    assert "trunk: already finished" in log.read_text()
    assert steps(tmp_path, "trunk") == list(range(1, NUM_TRUNK_STEPS + 1))
    (last,) = open_lineage(str(home / "trunk")).manifests
    for name in SYLLABLES:
        rows = steps(tmp_path, f"specialists/{name}")
        assert len(rows) == NUM_BRANCH_STEPS and rows == sorted(set(rows))
        assert open_lineage(str(home / f"specialists/{name}")).last.blocks[0] == last.blocks[0]

    command = ["-m", "growtx.cli.main", "add", str(home), "west", "--max-regression", "0.2"]
    data = f"data.sources=[{{files: {tmp_path}/west.jsonl}}]"
    process = launch(tmp_path, *command, data)
    when_it_has_trained(process, tmp_path, "specialists/west", num_steps=30)
    kill_the_driver(process.pid)
    process.wait(timeout=SECONDS)
    assert read_additions(Storage(str(home))) == [] and verify_ensemble(str(home / "ensemble")) == []
    assert launch(tmp_path, *command, "--resume").wait(timeout=SECONDS) == 0, log.read_text()
    rows = steps(tmp_path, "specialists/west")
    assert len(rows) == NUM_BRANCH_STEPS and rows == sorted(set(rows))
    (addition,) = read_additions(Storage(str(home)))
    assert all(source.is_identical for source in addition.receipt.old) and len(addition.receipt.old) == 2
    (new,) = addition.receipt.new
    assert new.alone < new.before and new.kept is not None and new.kept > 0.5
    model, _ = load_model(addition.place.root)
    assert isinstance(model, GrowtxEnsembleForCausalLM) and model.config.num_trunk_blocks == 1
