"""Jobs on a real cluster of two nodes: `ray start`, `ray job submit`, logs, stop, exit status, `--resume`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from growtx.store.runs import list_runs
from growtx.store.verify import verify
from growtx.train.tracking import gauge_name
from tests.cluster.ray_nodes import PROJECT, RayNodes, wait_until

pytestmark = pytest.mark.ray

TINY = [
    "--preset", "demo",
    "model={hidden_size: 32, num_attention_heads: 2, context_length: 32}",
    "tokenizer.vocab_size=512",
    "substrate.kind=binary",
    "data.validation_fraction=0.2",
    "training={global_batch_size: 4, log_every_steps: 5, evaluation: {num_windows: 4, num_samples: 0}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def nodes(storage: Path) -> Iterator[RayNodes]:
    cluster = RayNodes(storage)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def corpus(storage: Path) -> str:
    """The override that names some text."""
    path = storage / "text.txt"
    path.write_text("\n\n".join(f"Person {i} lives at river {i * 7 % 31} and has {i % 9} friends." for i in range(800)))
    return f"data.sources=[{{files: {path}}}]"


def rows(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_growth_over_both_nodes_leaves_no_process_when_stopped_and_goes_on_beside_another_users(
    nodes: RayNodes, storage: Path, corpus: str
) -> None:
    """Every node has one CPU and every worker takes one, so two workers need both nodes.

    The run is stopped in its second stage, and resumed on one worker while another person's starts and ends beside it.
    """
    run = storage / "first"
    plan = [
        "plan={stages: [{add: 1, train: {steps: 5}}, {add: 1, train: {steps: 2000}}]}",
        "resources={num_workers: 2}",
    ]
    nodes.submit("first", "python", "rayjobs/grow.py", *TINY, corpus, *plan, "--run-dir", "first")
    wait_until(lambda: nodes.nodes_that_run("ray::RayTrainWorker") == {"head", "second"}, "not on both nodes", 200)
    wait_until(lambda: any(row["stage"] == 2 and row["step"] > 5 for row in rows(run)), "no second stage", 300)
    sealed = {path.name: path.stat().st_mtime_ns for path in (run / "manifests").glob("*.json")}
    assert nodes.processes("--run-dir first")
    exported = [f"ray_{gauge_name(key)}{{" for key in ("train/loss", "eval/bits_per_byte", "stage", "num_tokens")]
    wait_until(lambda: all(name in nodes.metrics() for name in exported), "gauges are not exported", 60)
    stage = rf'ray_growtx_stage{{[^}}]*run="{run}"[^}}]*}} 2'  # exported some seconds after it was set
    wait_until(lambda: re.search(stage, nodes.metrics()) is not None, "the gauge stays at the first stage", 60)

    asked = time.monotonic()
    assert nodes.job("stop", "first").returncode == 0
    assert nodes.wait("first") == "STOPPED"
    assert time.monotonic() - asked < 30, "SIGTERM saves and leaves"
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    assert not nodes.processes("--run-dir first")
    wait_until(lambda: not nodes.processes("ray::TrainController"), "Ray's controller outlives the job", 30)
    assert {run.name: run.state for run in list_runs(str(storage))}["first"] == "interrupted"
    assert any((run / "checkpoints" / "stage-02").iterdir()), "it left without a checkpoint"

    nodes.submit(
        "first-again", "python", "rayjobs/grow.py", "--resume", "--run-dir", "first", "resources.num_workers=1"
    )
    other = ["plan={grow: {blocks: 1}, train: {steps: 5}}", "resources={num_workers: 1}"]
    nodes.submit("other", "python", "rayjobs/grow.py", *TINY, corpus, *other)  # names no run directory
    assert nodes.wait("other") == "SUCCEEDED", nodes.job("logs", "other").stdout
    assert nodes.wait("first-again") == "SUCCEEDED", nodes.job("logs", "first-again").stdout
    (first,) = [run for run in list_runs(str(storage)) if run.name == "first"]
    assert (first.state, first.num_finished_stages, first.job_id) == ("finished", 2, "first-again")
    assert f"report: {run}/report.html" in nodes.job("logs", "first-again").stdout
    assert (run / "report.html").exists()
    report = verify(str(run))
    assert not (report.missing or report.corrupt or report.moved or report.orphans)
    (second,) = list_runs(f"{storage}/runs")
    assert (second.state, second.num_finished_stages, second.job_id) == ("finished", 1, "other")
    assert second.name.startswith("demo-2")
    steps = [row["step"] for row in rows(run) if row["stage"] == 2 and "train/loss" in row]
    assert steps == sorted(set(steps)), "a step was trained twice"
    assert steps[-1] == 2000
    assert {name: (run / "manifests" / name).stat().st_mtime_ns for name in sealed} == sealed


def test_a_request_that_cannot_be_met_ends_in_one_sentence_and_a_failed_status(nodes: RayNodes, storage: Path) -> None:
    options = ["--run-dir", f"{storage}/large", "resources={num_workers: 8, wait_seconds: 1}"]
    done = nodes.job("submit", "--working-dir", ".", "--", "python", "rayjobs/grow.py", *options)
    assert done.returncode == 1
    (sentence,) = {line for line in done.stdout.splitlines() if line.startswith("error: ")}  # printed, then quoted
    assert "8 workers" in sentence
    assert "the Ray cluster has 2" in sentence
    assert "Traceback" not in done.stdout


def test_a_package_has_what_a_job_needs_and_no_junk(nodes: RayNodes) -> None:
    script = "import pathlib; [print('file:', path) for path in pathlib.Path('.').rglob('*') if path.is_file()]"
    nodes.submit("package", "python", "-c", script)
    assert nodes.wait("package") == "SUCCEEDED"
    output = nodes.job("logs", "package").stdout
    files = {Path(line.removeprefix("file: ")) for line in output.splitlines() if line.startswith("file: ")}
    assert {Path("rayjobs/grow.py"), Path("growtx/presets/demo.yaml"), Path("growtx/cli/main.py")} <= files
    allowed = {"benchmarks", "growtx", "rayjobs", "serve"} | {path.name for path in PROJECT.iterdir() if path.is_file()}
    assert {file.parts[0] for file in files} <= allowed
    assert not [file for file in files if file.suffix in {".pyc", ".safetensors", ".parquet", ".otf"}]
