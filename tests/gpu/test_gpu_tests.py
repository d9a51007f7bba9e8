"""Tests that wait for a GPU must not rot until somebody has one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tests_for_gpus_run_on_the_cpu_in_small_sizes() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "GROWTX_TEST_ORDER"}
    command = [sys.executable, "-m", "pytest", "tests/gpu/test_gpu.py", "-m", "gpu", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, env={**variables, "GROWTX_GPU_TESTS": "dry"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout
