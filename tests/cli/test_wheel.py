"""What `pip install growtx` gives: a wheel in a virtual environment that does not know this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TINY = (
    "model={hidden_size: 32, num_attention_heads: 2, context_length: 32}",
    "plan={grow: {blocks: 2}, train: {steps: 3}, budget: {active_parameters: null}}",
    "tokenizer.vocab_size=400",
    "substrate.kind=binary",
    "benchmarks={}",
    "training.global_batch_size=4",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sources alone: git's files, without caches and earlier builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("growtx", "serve", "rayjobs", "benchmarks", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(PROJECT / name), str(source)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("growtx-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin/` of an environment with the wheel; libraries come from the environment of the tests, growtx does not."""
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    # A path file adds a plain directory: the editable installation's own hook in there is not run.
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    return home / "bin"


def run(environment: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.run(
        [str(environment / words[0]), *words[1:]], env=variables, cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_wheel_claims_one_name_and_holds_what_is_read_at_run_time(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"growtx"}
    for data in (
        "presets/demo.yaml", "py.typed", "serving/static/index.html", "report/templates/page.html.j2",
        "evaluate/tasks/growtx_mmlu.yaml",
    ):  # fmt: skip
        assert f"growtx/{data}" in names


def test_every_command_has_help_without_the_checkout(environment: Path, tmp_path: Path) -> None:
    overview = run(environment, "growtx", "--help", cwd=tmp_path)
    assert overview.returncode == 0, overview.stderr
    for command in ("grow", "specialists", "sweep", "study", "evaluate", "benchmark", "serve", "inspect", "verify"):
        assert f"\n    {command}" in overview.stdout
        shown = run(environment, "growtx", command, "--help", cwd=tmp_path)
        assert shown.returncode == 0 and f"usage: growtx {command}" in shown.stdout
    where = run(environment, "python", "-c", "import growtx; print(growtx.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(environment.parent))


def test_benchmarks_say_that_they_need_the_sources(environment: Path, tmp_path: Path) -> None:
    refused = run(environment, "growtx", "benchmark", "growth", cwd=tmp_path)
    assert refused.returncode == 2
    assert "run `growtx benchmark` in a checkout" in refused.stderr


def test_the_server_is_built_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    program = "from growtx.serving.app import build; build({'model': 'nowhere'})"
    refused = run(environment, "python", "-c", program, cwd=tmp_path)
    assert "nowhere: there is no such run" in refused.stderr


@pytest.mark.ray
def test_a_few_steps_grow_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    grown = run(environment, "growtx", "grow", "--run-dir", "run", *TINY, cwd=tmp_path)
    assert grown.returncode == 0, grown.stdout[-3000:] + grown.stderr[-3000:]
    assert (tmp_path / "run" / "report.html").exists()
    verified = run(environment, "growtx", "verify", "run", cwd=tmp_path)
    assert verified.returncode == 0 and "intact: 2 manifests" in verified.stdout
