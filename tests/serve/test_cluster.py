"""On a real Ray: replicas that are killed, clients that leave, metrics of all processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from transformers import PreTrainedTokenizerFast

from growtx.models.ensemble import members_of
from tests.serve.conftest import make_ensemble

pytestmark = [
    pytest.mark.ray,
    # These have passed once and then no longer came up beside other work; until that is explained they are asked for.
    pytest.mark.skipif("GROWTX_SERVE_CLUSTER" not in os.environ, reason="set GROWTX_SERVE_CLUSTER=1 to run them"),
]

NUM_STREAMS = 16
APP = "growtx"


@pytest.fixture(scope="module")
def url(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: Any) -> Iterator[str]:
    """Two engine replicas and two front ends."""
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # for machines that are busy
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from serve.app import build

    paths = []
    for name, member in members_of(make_ensemble(tokenizer)).items():
        paths.append(str(tmp_path_factory.mktemp("models") / name))
        member.save_pretrained(paths[-1])
        tokenizer.save_pretrained(paths[-1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    }
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    settings = {"model": paths, "name": "tiny", "num_replicas": "2", "kv_cache_gib": 0.1, "drain_seconds": 5}
    serve.run(build(settings), name=APP, route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@dataclass
class Reading:
    """What one client saw of its stream."""

    text: str = ""
    times: list[float] = field(default_factory=list)
    is_complete: bool = False

    @property
    def longest_gap(self) -> float:
        return max(after - before for before, after in zip(self.times, self.times[1:], strict=False))


async def read_stream(session: aiohttp.ClientSession, index: int, max_tokens: int = 80) -> Reading:
    body = {"model": "tiny", "prompt": f"The quick {index}", "max_tokens": max_tokens, "seed": index, "stream": True}
    reading = Reading()
    async with session.post("/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                reading.text += json.loads(line[6:])["choices"][0]["text"]
                reading.times.append(time.perf_counter())
            reading.is_complete |= line.startswith(b"data: [DONE]")
    return reading


async def read_all(session: aiohttp.ClientSession) -> list[Reading]:
    return await asyncio.gather(*(read_stream(session, index) for index in range(NUM_STREAMS)))


async def replicas() -> dict[int, int]:
    """Process ids of the engines and how many texts each runs."""
    from ray import serve

    engine = serve.get_deployment_handle("Engine", APP)
    states = [await engine.status.remote() for _ in range(12)]
    return {state["pid"]: state["num_running"] for state in states}


def connect(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=120))


def test_streams_survive_the_death_of_their_replica(url: str) -> None:
    async def scenario() -> None:
        async with connect(url) as session:
            undisturbed = await read_all(session)
            assert all(reading.is_complete for reading in undisturbed)
            victim = next(iter(await replicas()))

            async def kill_when_streams_run() -> None:
                while (await replicas()).get(victim, 0) < 4:
                    await asyncio.sleep(0.02)
                os.kill(victim, signal.SIGKILL)

            disturbed, _ = await asyncio.gather(read_all(session), kill_when_streams_run())
            assert all(reading.is_complete for reading in disturbed)
            assert [reading.text for reading in disturbed] == [reading.text for reading in undisturbed]
            print("longest gap", max(reading.longest_gap for reading in disturbed), "seconds")

    asyncio.run(scenario())


def test_a_client_that_leaves_frees_its_place(url: str) -> None:
    async def scenario() -> None:
        async with connect(url) as session:
            body = {"model": "tiny", "prompt": "The", "max_tokens": 240, "seed": 1, "stream": True}
            async with session.post("/v1/completions", json=body) as response:
                await response.content.readline()
                assert sum((await replicas()).values()) == 1
                response.close()
            deadline = time.perf_counter() + 10
            left = time.perf_counter()
            while sum((await replicas()).values()) and time.perf_counter() < deadline:
                await asyncio.sleep(0.02)
            assert not sum((await replicas()).values())
            print("place free after", time.perf_counter() - left, "seconds")

    asyncio.run(scenario())


def test_clients_that_retry_lose_nothing_when_a_front_end_dies(url: str) -> None:
    async def retried(session: aiohttp.ClientSession, index: int) -> str:
        for _ in range(100):
            with suppress(aiohttp.ClientError, AssertionError):
                reading = await read_stream(session, index, 20)
                if reading.is_complete:
                    return reading.text
            await asyncio.sleep(0.2)
        raise AssertionError("no answer")

    async def scenario() -> None:
        async with connect(url) as session:
            expected = [await retried(session, index) for index in range(4)]
            victim = _pid_of_a_front_end()
            runs = asyncio.gather(*(retried(session, index) for index in range(4)))
            os.kill(victim, signal.SIGKILL)
            assert await runs == expected

    asyncio.run(scenario())


def _pid_of_a_front_end() -> int:
    from ray.util.state import list_actors

    actors = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    return next(int(actor.pid) for actor in actors if "Ingress" in (actor.name or "") or "Ingress" in actor.class_name)


def test_metrics_of_all_processes_are_in_one_page(url: str) -> None:
    async def scenario() -> None:
        wanted = {"requests_total", "tokens_total", "time_to_first_token_seconds", "inter_token_seconds", "batch_size"}
        wanted |= {"queue", "member_weight_total"}
        async with connect(url) as session:
            await read_stream(session, 0, 4)
            for _ in range(40):  # Ray collects every few seconds
                async with session.get("/metrics") as response:
                    page = await response.text()
                if all(f"ray_growtx_{name}" in page for name in wanted):
                    return
                await asyncio.sleep(1)
            raise AssertionError(page)

    asyncio.run(scenario())
