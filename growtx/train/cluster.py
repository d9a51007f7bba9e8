"""Connecting to Ray: the cluster of the surrounding job, or a local one that ends with this process."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.util

from growtx.compat.ray import CLUSTER_ENVIRONMENT, names_a_cluster, set_environment, silence_driver_warnings
from growtx.compat.ray_logging import silence_worker_logs
from growtx.exceptions import ResourceError, TrainingError
from growtx.train.settings import PrefixJobConfig, ResourcesConfig

PASSED_ON = ("WANDB_MODE", "NCCL_", "TORCH_NCCL_", "GLOO_")  # beginnings of variables that workers on all nodes get
REACH_SECONDS = 30.0  # that a cluster at RAY_ADDRESS gets to answer
ACCELERATOR = "accelerator_type:"  # how Ray names a kind of GPU among a node's resources
WATCH_SECONDS, LOST_SECONDS = 2.0, 20.0
LOST = "Ray was lost"
RESUME = "Finished stages and checkpoints are kept; run the same command with --resume"


@contextmanager
def connected(resources: ResourcesConfig, *, claim: bool = True) -> Iterator[None]:
    """Connect to Ray for the duration of the `with` block.

    `RAY_ADDRESS` (set inside `ray job submit`) names a cluster; without it a local one is started, isolated
    from other clusters on this machine.

    Args:
        claim: False where something comes first that needs other resources, such as packing: a cluster that can still
            grow is not asked for GPUs that would wait. Whoever says so calls `check_cluster` later.

    Raises:
        ResourceError: the cluster cannot be reached or lacks what is asked for.
        TrainingError: it ended before the block did.
    """
    set_environment(CLUSTER_ENVIRONMENT)
    address = os.environ.get("RAY_ADDRESS")
    started_here = not ray.is_initialized()
    if started_here and not address:
        # Otherwise a local Ray leaves its token in ~/.ray, and every later `ray start` requires it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    silence_driver_warnings()
    if started_here:
        _reach(address)
        _connect(address, resources)
    try:
        with watched() if address and started_here else nullcontext():
            if claim or not _may_grow(resources):
                check_cluster(resources)
            yield
    except (ray.exceptions.RayError, ConnectionError) as error:
        if isinstance(error, ray.exceptions.RayTaskError):  # raised by our own code in another process
            raise
        raise TrainingError(f"{LOST}: {type(error).__name__}: {first_sentence(error)}", RESUME) from error
    finally:
        if started_here:
            ray.shutdown()


def _reach(address: str | None, seconds: float = REACH_SECONDS) -> None:
    """Wait until something listens at the address of a cluster; Ray itself would try for a quarter of an hour.

    Raises:
        ResourceError: nothing does.
    """
    place = _host_and_port(address)
    if place is None:  # `auto` and `local` name no place
        return
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(place, timeout=5.0).close()
            return
        except OSError as error:
            is_unknown = isinstance(error, socket.gaierror)
            if is_unknown or time.monotonic() >= deadline:
                raise ResourceError(
                    f"no Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or error})",
                    "Start one with `ray start --head`, or unset RAY_ADDRESS to use this machine alone",
                ) from error
        time.sleep(1.0)


def _host_and_port(address: str | None) -> tuple[str, int] | None:
    host, separator, port = (address or "").rpartition("://")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if separator and port.isdigit() else None


@contextmanager
def watched() -> Iterator[None]:
    """End this process with a sentence if the cluster's head is gone: Ray would end it after a minute, with none."""
    place = _host_and_port(ray.get_runtime_context().gcs_address)
    ended = threading.Event()
    if place is not None:
        threading.Thread(target=_watch, args=(place, ended), daemon=True, name="watches-ray").start()
    try:
        yield
    finally:
        ended.set()


def _watch(place: tuple[str, int], ended: threading.Event) -> None:
    lost_since: float | None = None
    while not ended.wait(WATCH_SECONDS):
        try:
            socket.create_connection(place, timeout=5.0).close()
            lost_since = None
        except OSError:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since >= LOST_SECONDS and not ended.is_set():
                print(
                    f"error: {LOST}: its head at {place[0]}:{place[1]} is gone. {RESUME}.", file=sys.stderr, flush=True
                )
                os._exit(1)  # not an exception: the main thread waits inside Ray for ever


def _connect(address: str | None, resources: ResourcesConfig) -> None:
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,  # warnings and errors come through the progress actor and exceptions
            logging_level=logging.ERROR,
            configure_logging=True,
            runtime_env=runtime_env(resources),
        )
    except ConnectionError as error:
        raise ResourceError(
            f"no Ray cluster answers at RAY_ADDRESS={address}",
            "Start one with `ray start --head`, or unset RAY_ADDRESS to use this machine alone",
        ) from error
    except Exception as error:  # Ray has no class for wrong versions or tokens, or for nodes that do not start
        what = f"the Ray cluster at RAY_ADDRESS={address} cannot be used" if address else "Ray does not start here"
        reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        raise ResourceError(f"{what}: {reason}", "See Ray's logs in /tmp/ray/session_latest/logs") from error


def first_sentence(error: BaseException) -> str:
    """The last line of an error, which names the cause; of Ray's own errors, only the first sentence of that line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    return lines[-1].partition(". ")[0] if isinstance(error, ray.exceptions.RayError) else lines[-1]


def runtime_env(resources: ResourcesConfig) -> dict[str, Any]:
    """Environment of all Ray processes of a run."""
    variables = {
        "OMP_NUM_THREADS": str(max(1, int(resources.cpus_per_worker))),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    variables |= {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    if not resources.use_gpu:
        variables["DS_ACCELERATOR"] = "cpu"
        # Ray shows every GPU of a machine to workers that asked for none; those that did are given theirs later.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    environment: dict[str, Any] = {"worker_process_setup_hook": silence_worker_logs, "env_vars": variables}
    if not names_a_cluster():  # inside a job the working directory is Ray's copy and already importable
        root = str(Path(__file__).parents[2])
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return environment


def check_cluster(resources: ResourcesConfig) -> None:
    """Refuse to wait forever for what the cluster does not have.

    Raises:
        ResourceError: naming what is requested and what is available after `resources.wait_seconds`.
    """
    seconds = resources.wait_seconds if _may_grow(resources) else 0.0
    problem = _missing(resources)
    if problem is None:
        return
    deadline = time.monotonic() + seconds
    with _demanded(resources) if seconds else nullcontext():
        while problem is not None and time.monotonic() < deadline:
            time.sleep(1.0)
            problem = _missing(resources)
    if problem is not None:
        raise problem


def _may_grow(resources: ResourcesConfig) -> bool:
    """Whether what the cluster lacks may come; a local Ray has what it has."""
    return names_a_cluster() and resources.wait_seconds > 0


@contextmanager
def _demanded(resources: ResourcesConfig) -> Iterator[None]:
    """Let an autoscaler see what is missing: it starts nodes only for pending placements."""
    bundles = [_bundle(resources)] * resources.fewest_workers
    if job := resources.prefix_job:
        bundles += [_bundle(job)] * job.num_workers
    group = ray.util.placement_group(bundles)
    try:
        yield
    finally:
        ray.util.remove_placement_group(group)


def _bundle(group: ResourcesConfig | PrefixJobConfig) -> dict[str, float]:
    wanted = getattr(group, "accelerator_type", None)
    kind = {f"{ACCELERATOR}{wanted}": 0.001} if wanted else {}  # as Ray Train asks for it
    return {"CPU": group.cpus_per_worker, **({"GPU": 1.0} if group.use_gpu else {}), **kind}


def _missing(resources: ResourcesConfig) -> ResourceError | None:
    resources = resources.of_size(resources.fewest_workers)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if (wanted := resources.accelerator_type) is not None:
        known = {name.removeprefix(ACCELERATOR) for node in nodes for name in node if name.startswith(ACCELERATOR)}
        nodes = [node for node in nodes if f"{ACCELERATOR}{wanted}" in node]
        if not nodes:
            return ResourceError(
                f"resources.accelerator_type={wanted}: no node of the Ray cluster has such a GPU",
                f"Use one of {', '.join(sorted(known))}" if known else "Leave it out, or add such nodes",
            )
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    if resources.use_gpu and gpus < resources.num_workers:
        return ResourceError(
            f"resources: {resources.num_workers} GPU workers requested, but the Ray cluster has {gpus:g} GPUs",
            "Set resources.use_gpu=false, lower resources.num_workers, or add GPU nodes",
        )
    needed = resources.num_workers * resources.cpus_per_worker
    if cpus < needed:
        return ResourceError(
            f"resources: {resources.num_workers} workers of {resources.cpus_per_worker:g} CPUs need {needed:g} CPUs, "
            f"but the Ray cluster has {cpus:g}",
            "Lower resources.num_workers or resources.cpus_per_worker, or add nodes",
        )
    room = sum(num_workers_on(node, resources) for node in nodes)
    job = resources.prefix_job
    if job and (cpus < resources.num_cpus or gpus < resources.num_gpus):
        kind = f"{job.cpus_per_worker:g} CPUs{' and a GPU' if job.use_gpu else ''}"
        return ResourceError(
            f"resources.prefix_job: {job.num_workers} workers of {kind} and the stage's own need "
            f"{resources.num_cpus:g} CPUs and {resources.num_gpus} GPUs together, but the Ray cluster has {cpus:g} "
            f"and {gpus:g}",
            "Lower resources.prefix_job.num_workers, leave resources.prefix_job out, or add nodes",
        )
    if room < resources.num_workers:
        kind = f"{resources.cpus_per_worker:g} CPUs{' and a GPU' if resources.use_gpu else ''}"
        return ResourceError(
            f"resources: {resources.num_workers} workers of {kind} requested, but the nodes of the Ray cluster have "
            f"room for {room}: no worker spans two nodes",
            "Lower resources.num_workers or resources.cpus_per_worker, or add nodes",
        )
    return None


def num_workers_on(node: Mapping[str, float], resources: ResourcesConfig) -> int:
    """Workers that fit on an empty node of these resources."""
    by_cpu = int(node.get("CPU", 0.0) / resources.cpus_per_worker + 1e-6)
    return min(by_cpu, int(node.get("GPU", 0.0))) if resources.use_gpu else by_cpu
