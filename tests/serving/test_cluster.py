"""On a real Ray: processes that are killed, clients that leave, too many clients, metrics of all processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from transformers import PreTrainedTokenizerFast

from growtx.serving.app import build
from growtx.serving.local import APP, local_endpoint
from tests.models.ensemble.taking_apart import members_of
from tests.processes import descendants, kill_the_driver
from tests.serving.conftest import make_ensemble

pytestmark = pytest.mark.ray

NUM_STREAMS = 16
LONG = 2000  # tokens: a text that runs for seconds on any machine
LONGEST_GAP_SECONDS = 2.0
SECONDS_TO_START = 300
SECONDS_TO_RESTART = 120  # on a machine that does other things too


@pytest.fixture(scope="module")
def settings(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: Any) -> dict[str, Any]:
    """Two engine replicas and two front ends."""
    paths = []
    for name, member in members_of(make_ensemble(tokenizer, max_position_embeddings=LONG + 48)).items():
        paths.append(str(tmp_path_factory.mktemp("models") / name))
        member.save_pretrained(paths[-1])
        tokenizer.save_pretrained(paths[-1])
    return {
        "model": paths,
        "name": "tiny",
        "num_replicas": "2",
        "max_batch_size": 16,
        "max_queue": 16,
        "kv_cache_gib": 0.1,
        "drain_seconds": 30,
    }


@pytest.fixture(scope="module")
def url(settings: dict[str, Any]) -> Iterator[str]:
    with local_endpoint(settings) as url:
        yield url


@dataclass
class Reading:
    """What one client saw of its stream."""

    text: str = ""
    times: list[float] = field(default_factory=list)
    is_complete: bool = False

    @property
    def longest_gap(self) -> float:
        return max(after - before for before, after in zip(self.times, self.times[1:], strict=False))


async def read_stream(
    session: aiohttp.ClientSession, index: int, max_tokens: int = 80, reading: Reading | None = None
) -> Reading:
    body = {"model": "tiny", "prompt": f"The quick {index}", "max_tokens": max_tokens, "seed": index, "stream": True}
    reading = reading or Reading()
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
    """Process ids of the engines and how many texts each runs; Ray asks whoever has least to do."""
    from ray import serve

    engine = serve.get_deployment_handle("Engine", APP)
    states = [await engine.status.remote() for _ in range(12)]
    return {state["pid"]: state["num_running"] for state in states}


async def failovers(session: aiohttp.ClientSession, known: float = 0) -> float:
    """Texts that have changed replicas so far; Ray collects the count every few seconds."""
    count, deadline = known, time.monotonic() + 10
    while count == known and time.monotonic() < deadline:
        async with session.get("/metrics") as response:
            lines = (await response.text()).split("\n")
        count = sum(float(line.split()[-1]) for line in lines if line.startswith("ray_growtx_failovers_total{"))
        await asyncio.sleep(0.5)
    return count


def connect(url: str) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=120))


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
            assert await failovers(session) > 0
            longest_gap = max(reading.longest_gap for reading in disturbed)
            print(f"longest gap {longest_gap:.2f} seconds")
            assert longest_gap < LONGEST_GAP_SECONDS

    asyncio.run(scenario())


def test_clients_that_leave_free_their_places(url: str) -> None:
    """All places are taken for seconds; once their clients have gone, others are answered at once."""

    async def scenario() -> None:
        async with connect(url) as session:
            body = {"model": "tiny", "prompt": "The", "stream": True, "max_tokens": LONG, "ignore_eos": True}
            bodies = [{**body, "seed": index} for index in range(120)]
            asked = [asyncio.create_task(session.post("/v1/completions", json=body)) for body in bodies]
            queued, answered, deadline = set(asked), set[asyncio.Task[aiohttp.ClientResponse]](), time.monotonic() + 30
            while {task.result().status for task in answered} != {200, 429} and time.monotonic() < deadline:
                answered, queued = await asyncio.wait(asked, timeout=2)
            assert {task.result().status for task in answered} == {200, 429} and queued, "nobody else has room"
            for task in queued:
                task.cancel()
            for task in answered:
                task.result().close()
            left, answered_all = time.perf_counter(), False
            while not answered_all:
                assert time.perf_counter() < left + 4, "they wait for texts that nobody reads"
                with suppress(AssertionError):  # at its limit: the server has yet to see that they have gone
                    readings = await asyncio.gather(*(read_stream(session, index, 2) for index in range(NUM_STREAMS)))
                    answered_all = all(reading.is_complete for reading in readings)

    asyncio.run(scenario())


def test_clients_that_retry_lose_nothing_when_a_front_end_dies(url: str) -> None:
    async def retried(session: aiohttp.ClientSession, index: int) -> str:
        deadline = time.monotonic() + SECONDS_TO_RESTART
        while time.monotonic() < deadline:
            with suppress(aiohttp.ClientError, AssertionError):
                reading = await read_stream(session, index, 20)
                if reading.is_complete:
                    return reading.text
            await asyncio.sleep(0.2)
        raise AssertionError("no answer")

    async def scenario() -> None:
        async with connect(url) as session:
            expected = [await retried(session, index) for index in range(4)]
            for kind in ("ray::ServeReplica:growtx:Ingress", "ray::ProxyActor"):
                before = processes(kind)
                runs = asyncio.gather(*(retried(session, index) for index in range(4)))
                await asyncio.sleep(0.05)
                os.kill(min(before), signal.SIGKILL)
                assert await runs == expected
                deadline = time.monotonic() + SECONDS_TO_RESTART
                while len(processes(kind) - {min(before)}) < len(before):
                    assert time.monotonic() < deadline, f"{kind} was not started again"
                    await asyncio.sleep(0.2)

    asyncio.run(scenario())


def processes(title: str) -> set[int]:
    """Process ids of this Ray's workers of a kind."""
    return {process.pid for process in descendants(title)}


def test_more_than_there_is_room_for_is_refused_with_retry_after(url: str) -> None:
    async def scenario() -> None:
        async with connect(url) as session:

            async def ask(index: int) -> int:
                body = {"model": "tiny", "prompt": "The", "max_tokens": 120, "seed": index}
                async with session.post("/v1/completions", json=body) as response:
                    assert response.status == 200 or "Retry-After" in response.headers, await response.text()
                    return response.status

            assert set(await asyncio.gather(*(ask(index) for index in range(120)))) == {200, 429}

    asyncio.run(scenario())


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


def test_a_new_version_lets_the_old_ones_texts_end(url: str, settings: dict[str, Any]) -> None:
    """A drain, not a failover: no text changes its replica."""
    from ray import serve

    async def scenario() -> None:
        async with connect(url) as session:
            undisturbed = await read_all(session)
            before, moved = set(await replicas()), await failovers(session, known=-1)
            streams = asyncio.create_task(read_all(session))
            while not sum((await replicas()).values()):
                await asyncio.sleep(0.02)
            newer = build({**settings, "max_queue": 17})
            await asyncio.to_thread(serve.run, newer, name=APP, route_prefix="/")
            disturbed = await streams
            assert all(reading.is_complete for reading in disturbed)
            assert [reading.text for reading in disturbed] == [reading.text for reading in undisturbed]
            assert not before & set(await replicas()), "all replicas are new"
            assert await failovers(session, known=moved) == moved

    asyncio.run(scenario())


@dataclass
class Foreground:
    """An endpoint that a command keeps up, and where it answers."""

    process: subprocess.Popen[str]
    port: int

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()[0]
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5):
                return
            time.sleep(0.2)
        raise AssertionError("no answer")

    def wait_until_it_says(self, words: str) -> None:
        assert self.process.stdout is not None
        assert any(words in line for line in self.process.stdout)


@contextmanager
def foreground(command: str, settings: dict[str, Any]) -> Iterator[Foreground]:
    """`serve run` listens on port 8000 and nowhere else."""
    words = [f"{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in settings.items()]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 8000 if command == "serve run" else 0))
        port = probe.getsockname()[1]
    growtx = [sys.executable, "-m", "growtx.cli.main", "serve", *words, "--port", str(port)]
    ray_serve = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", "local", "growtx.serving.app:build"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [*ray_serve, *words] if command == "serve run" else growtx,
        env={**environment, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield Foreground(process, port)
    finally:
        if process.poll() is None:
            kill_the_driver(process.pid)


@pytest.mark.parametrize(
    ("command", "number"),
    [("serve run", signal.SIGINT), ("growtx serve", signal.SIGTERM)],  # and SIGINT below
)
def test_ctrl_c_lets_running_streams_end(settings: dict[str, Any], command: str, number: int) -> None:
    """Sent to the command alone; a terminal would send it to its whole group, of which Ray's processes are not."""

    async def scenario(endpoint: Foreground) -> list[Reading]:
        async with connect(f"http://127.0.0.1:{endpoint.port}") as session:
            undisturbed = await read_all(session)
            begun = [Reading() for _ in range(NUM_STREAMS)]
            streams = asyncio.gather(*(read_stream(session, index, 200, one) for index, one in enumerate(begun)))
            while not all(one.times for one in begun) and not streams.done():
                await asyncio.sleep(0.02)
            endpoint.process.send_signal(number)
            ended = await streams
            assert [reading.text[:40] for reading in ended] == [reading.text[:40] for reading in undisturbed]
            return list(ended)

    # One replica starts soonest; `serve run` takes the machine's CPUs as they are.
    small = {**settings, "num_replicas": "1", "num_ingress_replicas": "1", "cpus_per_replica": 0.25}
    with foreground(command, small) as endpoint:
        endpoint.wait_until_up()
        readings = asyncio.run(scenario(endpoint))
        assert all(reading.is_complete for reading in readings)
        try:
            output, _ = endpoint.process.communicate(timeout=settings["drain_seconds"] + 30)
        except subprocess.TimeoutExpired:
            # `serve run` sometimes hears nothing of a signal that comes soon after its start (docs/negative-results.md,
            # "still open"); nobody reads the answers any more, and who waits at a terminal asks again.
            assert command == "serve run"
            warnings.warn("serve run did not hear the first Ctrl-C", stacklevel=1)
            endpoint.process.send_signal(number)
            output, _ = endpoint.process.communicate(timeout=60)
    assert endpoint.process.returncode == 0, output
    assert "running answers get up to" in output


def test_a_second_ctrl_c_does_not_wait(settings: dict[str, Any]) -> None:
    slow = {**settings, "num_replicas": "1", "num_ingress_replicas": "1", "max_queue": 100, "drain_seconds": 600}

    async def scenario(endpoint: Foreground) -> None:
        async with connect(f"http://127.0.0.1:{endpoint.port}") as session:
            body = {"model": "tiny", "prompt": ["The"] * 100, "max_tokens": 240, "stream": True, "ignore_eos": True}
            async with session.post("/v1/completions", json=body) as response:
                await response.content.readline()
                endpoint.process.send_signal(signal.SIGINT)
                await asyncio.to_thread(endpoint.wait_until_it_says, "running answers get up to")
                endpoint.process.send_signal(signal.SIGINT)
                with suppress(aiohttp.ClientError):
                    await response.content.read()

    with foreground("growtx serve", slow) as endpoint:
        endpoint.wait_until_up()
        asyncio.run(scenario(endpoint))
        output, _ = endpoint.process.communicate(timeout=120)
    assert "stopping at once" in output
