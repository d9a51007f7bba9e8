"""Processes that tests look for by their titles."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil


def descendants(title: str, pid: int | None = None) -> list[psutil.Process]:
    """Those of a process (default: this one) whose title begins so; what ends meanwhile is left out."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(os.getpid() if pid is None else pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
    return found
