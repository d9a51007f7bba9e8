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


def kill_the_driver(pid: int) -> None:
    """Kill a process that started Ray, and see that what it started ends too."""
    see_that_they_end(kill_alone(pid))


def kill_alone(pid: int) -> list[psutil.Process]:
    """Kill a process that started Ray; returns what it started, which works on for a while.

    Ray's own two agents of the node are not among it: they notice a minute later, and hold nothing.
    """
    family = psutil.Process(pid).children(recursive=True)
    agents = [*descendants("ray::DashboardAgent", pid), *descendants("ray::RuntimeEnvAgent", pid)]
    psutil.Process(pid).kill()
    return [process for process in family if process not in agents]


def see_that_they_end(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=180)
    assert not alive, "processes outlive their driver"
