"""The endpoint from this process: `growtx serve` until somebody ends it, or a block of code on a Ray of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from growtx.compat.ray import SERVE_ENVIRONMENT, is_slow_start, set_environment
from growtx.exceptions import ResourceError

APP = "growtx"
MAX_STARTS = 4  # of Ray on a busy machine


def serve_in_foreground(arguments: dict[str, Any], *, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, then let running answers end before the replicas stop; a second one does not wait.

    Uses the cluster at `RAY_ADDRESS` where that is set, and a Ray of its own otherwise.

    Args:
        arguments: of `growtx.serving.app.build`.

    Raises:
        ConfigError: a setting is wrong.
        ResourceError: no Ray answers, or the port is taken.
    """
    set_environment(SERVE_ENVIRONMENT)
    import ray
    from ray import serve

    from growtx.serving.app import build

    application = build(arguments)  # before Ray starts: `serve.shutdown` lets running answers end from here on
    _check_port(host, port)
    stop = _Stop()
    stop.listen()
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        _start_ray(max(4, os.cpu_count() or 1))  # front ends and controller take fractions of CPUs beside the engines
    try:
        stop.listen()  # Ray's start sets a handler of SIGTERM that would end the process
        serve.start(http_options={"host": host, "port": port})
        serve.run(application, name=APP, route_prefix="/")
        print(f"serving on http://{host}:{port}; Ctrl-C lets running answers end, then stops", flush=True)
        stop.asked.wait()
        serve.shutdown()
    finally:
        ray.shutdown()


class _Stop:
    """SIGINT and SIGTERM: the first one asks, the second one interrupts whatever runs."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)

    def _heard(self, *_: object) -> None:
        if self.asked.is_set():
            raise KeyboardInterrupt
        self.asked.set()


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(f"--port {port} on {host}: {error.strerror}", "Give another --port") from error


@contextmanager
def local_endpoint(arguments: dict[str, Any], *, num_cpus: int = 4) -> Iterator[str]:
    """Start an endpoint on a free port of the loopback interface, yield its address, and stop it at the end.

    Args:
        arguments: of `serve.app.build`.
        num_cpus: what Ray may hand out, whatever the machine has.
    """
    set_environment(SERVE_ENVIRONMENT)
    import ray
    from ray import serve

    from growtx.serving.app import build

    _start_ray(num_cpus)
    try:
        port = _free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        serve.run(build(arguments), name=APP, route_prefix="/")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    finally:
        ray.shutdown()


def _start_ray(num_cpus: int) -> None:
    import ray

    for attempt in range(MAX_STARTS):
        try:
            ray.init(
                address="local",  # other clusters on this machine are not seen
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": _environment()},
            )
            return
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if not is_slow_start(error) or attempt == MAX_STARTS - 1:
                raise


def _environment() -> dict[str, str]:
    """Ray's workers start elsewhere: they find this checkout by its path."""
    root = str(Path(__file__).parents[2])
    return {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
