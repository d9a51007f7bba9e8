"""A disk of a few kilobytes that is really full: a tmpfs, which needs a machine where the tests may mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, kibibytes: int) -> Iterator[Path]:
    """Mount a disk at a new directory until the end of the block; skips the test where that is not allowed."""
    path.mkdir()
    done = _run("mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path))
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))


def resize(path: Path, kibibytes: int) -> None:
    """Give a small disk another size."""
    assert _run("mount", "-o", f"remount,size={kibibytes}k", str(path)).returncode == 0


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
