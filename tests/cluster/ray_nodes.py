"""A Ray cluster of two nodes on this machine, started by the commands that cluster/README.md gives to a newcomer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

PROJECT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "0123456789abcdef" * 4


class RayNodes:
    """Two nodes of one CPU each, with token authentication and ports of their own.

    Args:
        storage: what the jobs find in `GROWTX_STORAGE`.
    """

    def __init__(self, storage: Path) -> None:
        ports = _free_ports()
        port, dashboard_port, client_port = next(ports), next(ports), next(ports)
        self.address = f"http://127.0.0.1:{dashboard_port}"
        self.directory = Path(tempfile.mkdtemp(prefix="growtx-", dir="/tmp"))  # socket paths end at 107 characters
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as after `. .venv/bin/activate`
            "HOME": str(self.directory),  # the tester's own ~/.ray/auth_token plays no part
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_metrics_report_interval_ms": "1000",
            "RAY_worker_niceness": "0",
            "GROWTX_STORAGE": str(storage),
            "HF_HUB_OFFLINE": "1",
        }
        self._nodes: dict[str, psutil.Popen] = {}
        self._metrics_ports: list[int] = []
        head = [f"--port={port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]
        try:
            self._start("head", ports, "--head", *head)
            self._start("second", ports, f"--address=127.0.0.1:{port}")
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, ports: Iterator[int], *arguments: str) -> None:
        common = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=150000000", "--block"]
        self._metrics_ports.append(next(ports))
        common += [f"--dashboard-agent-listen-port={next(ports)}", f"--metrics-export-port={self._metrics_ports[-1]}"]
        common += [f"--temp-dir={self.directory}/{name}"]  # in a common one, a node deletes what the other still uses
        path = self.directory / f"{name}.log"
        known = self._own_processes()
        for _ in range(3):  # Ray gives a node 30 s to start, which a busy machine may not have
            with path.open("w") as log:
                node = psutil.Popen([RAY, "start", *arguments, *common], env=self._environment, stdout=log, stderr=log)
            self._nodes[name] = node
            wait_until(partial(_has_started_or_failed, node, path), f"the {name} node is not up", 300)
            if node.poll() is None:
                return
            _end([process for process in self._own_processes() if process not in known])
        raise AssertionError(path.read_text())

    def job(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ray job VERB` against this cluster, in the project's root."""
        command = [RAY, "job", verb, "--address", self.address, *arguments]
        return subprocess.run(
            command, env=self._environment, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
        )

    def submit(self, name: str, *entrypoint: str) -> None:
        """Submit an entrypoint with the project as working directory, and do not wait for it."""
        done = self.job("submit", "--working-dir", ".", "--submission-id", name, "--no-wait", "--", *entrypoint)
        assert done.returncode == 0, done.stdout + done.stderr

    def metrics(self) -> str:
        """What Prometheus would scrape from both nodes now."""
        pages = []
        for port in self._metrics_ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
                pages.append(response.read().decode())
        return "".join(pages)

    def nodes_that_run(self, marker: str) -> set[str]:
        """Names of the nodes that have a process with `marker` in its command line."""
        return {
            name
            for name, node in self._nodes.items()
            if any(marker in _describe(process) for process in node.children(recursive=True))
        }

    def status(self, name: str) -> str:
        """`PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`; asked over HTTP, since a command costs a second."""
        request = urllib.request.Request(
            f"{self.address}/api/jobs/{name}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request) as response:
            return str(json.load(response)["status"])

    def wait(self, name: str) -> str:
        """The state that a job ends in."""
        wait_until(lambda: self.status(name) not in ("PENDING", "RUNNING"), f"job {name} does not end", 400)
        return self.status(name)

    def processes(self, marker: str) -> list[psutil.Process]:
        """Processes of this cluster with `marker` in their command line or environment."""
        return [process for process in self._tree() if marker in _describe(process)]

    def stop(self) -> None:
        """End exactly what was started: `ray stop` would end every cluster on the machine."""
        _end(self._own_processes())
        shutil.rmtree(self.directory, ignore_errors=True)

    def _own_processes(self) -> list[psutil.Process]:
        """Every process of this cluster, those too whose parent has died: its home directory is theirs alone."""
        return [process for process in psutil.process_iter() if _home(process) == str(self.directory)]

    def _tree(self) -> list[psutil.Process]:
        living = [node for node in self._nodes.values() if node.is_running()]
        return [process for node in living for process in (*node.children(recursive=True), node)]


def wait_until(condition: Callable[[], bool], problem: str, seconds: float) -> None:
    """Wait for a condition; `problem` is what the test fails with."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.2)


def _free_ports() -> Iterator[int]:
    """Ports that nothing listens on, outside of Ray's worker ports (10002-19999) and the kernel's ephemeral ones."""
    for port in range(20000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                yield port


def _has_started_or_failed(node: psutil.Popen, log: Path) -> bool:
    return "Ray runtime started" in log.read_text() or node.poll() is not None


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        _quietly(process.kill)


def _home(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HOME")
    except psutil.Error:
        return None


def _describe(process: psutil.Process) -> str:
    try:
        return " ".join([*process.cmdline(), *process.environ().values()])
    except psutil.Error:  # it ended meanwhile
        return ""


def _quietly(action: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        action()
