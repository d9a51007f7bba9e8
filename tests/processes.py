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


def kill_the_driver(pid: int, *, also: str | None = None) -> None:
    """Kill a process that started Ray, and see that what it started ends too.

    Ray's own two agents of the node are not waited for: they notice a minute later, and hold nothing.

    Args:
        pid: of the driver.
        also: title of processes to kill with it, which would work on for a while.
    """
    family = psutil.Process(pid).children(recursive=True)
    agents = [*descendants("ray::DashboardAgent", pid), *descendants("ray::RuntimeEnvAgent", pid)]
    victims = descendants(also, pid) if also else []
    psutil.Process(pid).kill()
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    _, alive = psutil.wait_procs([process for process in family if process not in agents], timeout=180)
    assert not alive, "processes outlive their driver"
