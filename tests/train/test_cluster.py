"""What a cluster lacks is one sentence, before anything waits for it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from typing import Any

import pytest
import ray

from growtx.exceptions import ResourceError, TrainingError
from growtx.train import cluster
from growtx.train.settings import PrefixJobConfig, ResourcesConfig


def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": each} for each in resources] + [{"Alive": False, "Resources": {"CPU": 64.0}}]


@pytest.fixture(autouse=True)
def two_nodes_of_three_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.nodes", lambda: nodes({"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0, "accelerator_type:T4": 1.0}))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"num_workers": 9, "min_workers": 7}, "7 workers of 1 CPUs need 7 CPUs, but the Ray cluster has 6"),
        ({"num_workers": 7}, "7 workers of 1 CPUs need 7 CPUs, but the Ray cluster has 6"),
        ({"num_workers": 2, "use_gpu": True}, "2 GPU workers requested, but the Ray cluster has 1 GPUs"),
        (
            {"num_workers": 3, "cpus_per_worker": 2},
            "3 workers of 2 CPUs requested, .* have room for 2: no",
        ),
        (
            {"num_workers": 3, "prefix_job": PrefixJobConfig(num_workers=2, cpus_per_worker=2)},
            "prefix_job: 2 workers of 2 CPUs and the stage's own need 7 CPUs and 0 GPUs together, but .* 6 and 1",
        ),
        (
            {"use_gpu": True, "prefix_job": PrefixJobConfig(use_gpu=True)},
            "prefix_job: 1 workers of 1 CPUs and a GPU .* 2 GPUs together",
        ),
        (
            {"use_gpu": True, "accelerator_type": "H100"},
            r"accelerator_type=H100: no node of the Ray cluster has such a GPU\. Use one of T4",
        ),
        (
            {"use_gpu": True, "accelerator_type": "T4", "cpus_per_worker": 2, "num_workers": 2},
            "2 GPU workers requested",
        ),
        ({"cpus_per_worker": 4, "use_gpu": True}, "1 workers of 4 CPUs and a GPU requested, .* room for 0"),
    ],
)
def test_what_the_nodes_lack_is_named(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ResourceError, match=sentence):
        cluster.check_cluster(ResourcesConfig(**asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"num_workers": 6},
        {"num_workers": 2, "cpus_per_worker": 3},
        {"use_gpu": True},
        {"use_gpu": True, "accelerator_type": "T4"},
        {"num_workers": 5, "prefix_job": PrefixJobConfig()},
        {"num_workers": 9, "min_workers": 6},
        {"num_workers": 9, "min_workers": 5, "prefix_job": PrefixJobConfig()},
    ],
)
def test_what_the_nodes_have_is_not_refused(asked: dict[str, Any]) -> None:
    cluster.check_cluster(ResourcesConfig(**asked))


def test_workers_that_asked_for_no_gpu_see_none() -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    on_cpus, on_gpus = (cluster.runtime_env(ResourcesConfig(use_gpu=use_gpu))["env_vars"] for use_gpu in (False, True))
    assert hidden.items() <= on_cpus.items() and not hidden.keys() & on_gpus.keys()


def test_what_says_how_nodes_talk_to_each_other_reaches_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"NCCL_SOCKET_IFNAME": "eth1", "GLOO_SOCKET_IFNAME": "eth1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    for name, value in {**given, "MY_SECRET": "x"}.items():
        monkeypatch.setenv(name, value)
    passed_on = cluster.runtime_env(ResourcesConfig())["env_vars"]
    assert given.items() <= passed_on.items() and "MY_SECRET" not in passed_on


def test_a_kind_of_gpu_is_shown_to_an_autoscaler_and_needs_gpus() -> None:
    chosen = ResourcesConfig(use_gpu=True, accelerator_type="T4")
    assert cluster._bundle(chosen) == {"CPU": 1, "GPU": 1, "accelerator_type:T4": 0.001}
    with pytest.raises(ValueError, match="accelerator_type=T4 chooses among GPUs; set use_gpu too"):
        ResourcesConfig(accelerator_type="T4")


def test_a_cluster_that_can_grow_is_shown_the_demand_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoscaler starts nodes only for what waits to be placed; what was asked for is then taken back."""
    calls: list[Any] = []
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr("ray.util.placement_group", lambda bundles: calls.append(bundles) or "group")
    monkeypatch.setattr("ray.util.remove_placement_group", calls.append)
    monkeypatch.setattr(
        cluster.time, "sleep", lambda seconds: monkeypatch.setattr("ray.nodes", lambda: nodes({"CPU": 8.0, "GPU": 8.0}))
    )
    job = PrefixJobConfig(cpus_per_worker=0.5)
    cluster.check_cluster(ResourcesConfig(num_workers=7, use_gpu=True, wait_seconds=60, prefix_job=job))
    assert calls == [[{"CPU": 1.0, "GPU": 1.0}] * 7 + [{"CPU": 0.5}], "group"]


@pytest.mark.parametrize(
    ("address", "error", "sentence"),
    [
        ("head:6379", ConnectionError(), "no Ray cluster answers at RAY_ADDRESS=head:6379. Start one with"),
        (
            "head:6379",
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\n"),
            "the Ray cluster at RAY_ADDRESS=head:6379 cannot be used: Version mismatch: The cluster was started with: "
            "Ray: 2.60.0 Python: 3.12.1. See Ray's logs",
        ),
        (None, Exception("The node timed out during startup."), "Ray does not start here: The node timed out during"),
    ],
)
def test_a_ray_that_cannot_be_used_is_one_sentence(
    address: str | None, error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(cluster, "_reach", lambda address: None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "any")
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError, match=f"^{re.escape(sentence)}") as raised, cluster.connected(ResourcesConfig()):
        pass
    assert "\n" not in str(raised.value)


def test_gpus_of_a_cluster_that_can_grow_are_asked_for_after_what_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    resources = ResourcesConfig(num_workers=2, use_gpu=True, wait_seconds=0.1)
    with pytest.raises(ResourceError, match="2 GPU workers"), cluster.connected(resources, claim=False):
        pass  # a local Ray has what it has
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(cluster, "_demanded", lambda resources: pytest.fail("claimed"))
    with cluster.connected(resources, claim=False):
        pass


def test_an_address_at_which_nothing_listens_is_given_up_after_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(cluster.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ResourceError, match=f"no Ray cluster answers at RAY_ADDRESS={address}"):
        cluster._reach(address)
    assert next(clock) <= 45


@pytest.mark.parametrize("address", ["no-such-host.invalid:6379", "ray://no-such-host.invalid:10001"])
def test_a_name_that_is_unknown_is_not_waited_for(address: str) -> None:
    with pytest.raises(ResourceError, match="no Ray cluster answers"):
        cluster._reach(address, seconds=1000.0)


@pytest.mark.parametrize("address", [None, "auto", "local"])
def test_addresses_without_a_place_are_left_to_ray(address: str | None) -> None:
    cluster._reach(address)


def test_a_cluster_that_begins_to_listen_meanwhile_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(cluster.time, "sleep", lambda seconds: server.listen())
        cluster._reach(f"127.0.0.1:{server.getsockname()[1]}")


WATCHER = """
import socket, sys, threading, time
from growtx.train import cluster
cluster.WATCH_SECONDS, cluster.LOST_SECONDS = 0.05, 0.3
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=cluster._watch, args=(server.getsockname(), threading.Event()), daemon=True).start()
time.sleep(0.5)
print("alive", flush=True)
server.close()
time.sleep(30)
print("still waiting", flush=True)
"""


def test_a_process_whose_cluster_is_gone_ends_with_a_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHER], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert re.fullmatch(
        r"error: Ray was lost: its head at 127\.0\.0\.1:\d+ is gone\. .* with --resume\.\n", done.stderr
    )


DIED = ray.exceptions.RayActorError(
    error_msg="The actor died unexpectedly before finishing this task.\n\tclass_name: TrainController\n\tpid: 7\n"
    "The actor is dead because its node has died. Node Id: 5f3b. Some common causes include: (1) the raylet ..."
)


def test_a_ray_that_is_lost_in_the_middle_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    expected = (
        "Ray was lost: RayActorError: The actor is dead because its node has died. Finished stages and checkpoints"
    )
    with pytest.raises(TrainingError, match=f"^{re.escape(expected)}"), cluster.connected(ResourcesConfig()):
        raise DIED


def test_a_mistake_in_a_task_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    mistake = ray.exceptions.RayTaskError("_train", "Traceback ...\nKeyError: 'x'", KeyError("x"))
    with pytest.raises(ray.exceptions.RayTaskError, match="KeyError"), cluster.connected(ResourcesConfig()):
        raise mistake


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DIED, "The actor is dead because its node has died"),
        (ValueError("Traceback:\n  File ...\nno space left. 3 bytes.\n"), "no space left. 3 bytes."),
        (MemoryError(), "no reason given"),
    ],
)
def test_of_a_long_error_the_sentence_that_says_why_is_told(error: Exception, sentence: str) -> None:
    assert cluster.first_sentence(error) == sentence
