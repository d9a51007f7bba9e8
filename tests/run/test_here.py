"""A run in one process, on a machine where Ray cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from growtx.exceptions import ConfigError
from growtx.storage import Storage
from growtx.store.runs import read_metrics
from growtx.store.verify import verify
from growtx.train.places import IN_THIS_PROCESS
from growtx.train.settings import ResourcesConfig

ROOT = Path(__file__).parents[2]
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # importing it or any part of it fails
from growtx.cli.main import main
code = main(sys.argv[1:])
assert not any(name.startswith("ray.") for name in sys.modules)
sys.exit(code)
"""
TINY = [
    "plan={grow: {blocks: 2}, train: {steps: 6}}",
    "model={hidden_size: 16, num_attention_heads: 2, context_length: 32}",
    "training={global_batch_size: 4, prefix: cache, evaluation: {num_windows: 4, num_samples: 1, sample_tokens: 2}}",
    "benchmarks.limit=4",
    "resources.num_workers=1",
]  # fmt: skip


def growtx(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_RAY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_demo_runs_to_its_report_where_ray_is_not_installed(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    done = growtx("grow", "--here", "--run-dir", run_dir, f"cache_dir={tmp_path}/cache", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Storage(run_dir)
    assert run.exists("report.html") and run.exists("model/config.json") and verify(run_dir).is_intact
    assert {row["stage"] for row in read_metrics(run)} == {1, 2}
    assert Storage(f"{run_dir}/controls/depth-2").exists("manifests")


def test_a_run_goes_on_here_that_was_begun_elsewhere_or_stopped(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    begin = ("grow", "--here", "--run-dir", run_dir, f"cache_dir={tmp_path}/cache", *TINY)
    stopped = growtx(*begin, "plan.train.seconds=0.01", "benchmarks.controls=none")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    again = growtx("grow", "--here", "--resume", "--run-dir", run_dir)
    assert again.returncode == 0 and verify(run_dir).is_intact, again.stdout + again.stderr


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"num_workers": 2}, r"resources\.num_workers=2: --here is one process.*resources\.num_workers=1"),
        ({"prefix_job": {}}, r"resources\.prefix_job is a job on Ray.*resources\.prefix_job=null"),
    ],
)
def test_what_needs_more_than_a_process_is_refused(resources: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message), IN_THIS_PROCESS.connected(ResourcesConfig(**resources)):
        raise AssertionError


def test_more_workers_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = growtx("grow", "--here", "--run-dir", f"{tmp_path}/run", "resources.num_workers=2")
    assert done.returncode == 2 and done.stderr.startswith("error: resources.num_workers=2: --here is one process")
    assert not (tmp_path / "run").exists()
