"""A long run of mixed traffic against an endpoint on loopback, and what its processes use meanwhile.

Whole and streamed texts, clients that leave, requests that are wrong, bursts beyond the queue. What is not given back
(memory, threads, open files) shows as a difference between the beginning and the end, and as a slope over all samples.
Sampling begins after a warm-up, in which allocators and caches reach their size.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import aiohttp
import psutil
from transformers import PreTrainedTokenizerFast

from benchmarks.serving import random_members
from growtx.serving.local import APP, local_endpoint

SAMPLE_SECONDS = 10.0
BURST_SIZE = 96  # more than places and queue together
ENGINE = {"max_batch_size": 16, "max_queue": 16, "num_ingress_replicas": 1, "kv_cache_gib": 0.1}
PROCESSES = (f"ray::ServeReplica:{APP}:Engine", f"ray::ServeReplica:{APP}:Ingress", "ray::ProxyActor")


@dataclass(frozen=True)
class Cost:
    """What a process uses at one moment."""

    seconds: float
    resident_bytes: int
    private_bytes: int  # without what is shared with others: libraries, and Ray's object store as far as it was touched
    num_threads: int
    num_files: int


@dataclass
class Soak:
    """What came back, by kind of request and status, and what every process had at regular times."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    costs: dict[str, list[Cost]] = field(default_factory=dict)

    def change(self, process: str, name: str) -> tuple[float, float, float]:
        """Of a cost: medians of the first and of the last quarter of the samples, and its slope, per minute."""
        times, samples = zip(*((cost.seconds, getattr(cost, name)) for cost in self.costs[process]), strict=True)
        quarter = max(1, len(samples) // 4)
        slope = linear_regression(times, samples).slope if len(samples) > 1 else 0.0
        return median(samples[:quarter]), median(samples[-quarter:]), 60 * slope


def run_soak(
    tokenizer: PreTrainedTokenizerFast, seconds: float, requests_per_second: float, *, warm_up_seconds: float
) -> Soak:
    """Serve a small ensemble of random weights and keep it busy, for `seconds` after the warm-up."""
    with _served(tokenizer) as url:
        return asyncio.run(_soak(url, seconds, requests_per_second, warm_up_seconds))


@contextmanager
def _served(tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    members = random_members(tokenizer, hidden_size=64, num_blocks=2, num_heads=4, vocab_size=512)
    with tempfile.TemporaryDirectory() as directory:
        paths = [str(Path(directory) / name) for name in members]
        for path, member in zip(paths, members.values(), strict=True):
            member.save_pretrained(path)
            tokenizer.save_pretrained(path)
        with local_endpoint({"model": paths, "name": "soak", **ENGINE}) as url:
            yield url


async def _soak(url: str, seconds: float, requests_per_second: float, warm_up_seconds: float) -> Soak:
    soak, generator, running = Soak(), random.Random(0), set[asyncio.Task[None]]()
    begin = time.monotonic() + warm_up_seconds
    sampling = asyncio.create_task(_sample(soak, begin))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        while time.monotonic() < begin + seconds:
            kind = generator.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
            task = asyncio.create_task(_one(session, kind, generator.randrange(2**31), soak))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(generator.expovariate(requests_per_second))
        await asyncio.gather(*running)
    sampling.cancel()
    return soak


async def _sample(soak: Soak, begin: float) -> None:
    await asyncio.sleep(begin - time.monotonic())
    while True:
        for process in psutil.Process().children(recursive=True):
            with process.oneshot():
                title = " ".join(process.cmdline())  # Ray appends what the process does at the moment
                if name := next((name for name in PROCESSES if title.startswith(name)), ""):
                    memory, now = process.memory_full_info(), time.monotonic() - begin
                    cost = Cost(now, memory.rss, memory.uss, process.num_threads(), process.num_fds())
                    soak.costs.setdefault(name, []).append(cost)
        await asyncio.sleep(SAMPLE_SECONDS)


async def _one(session: aiohttp.ClientSession, kind: str, seed: int, soak: Soak) -> None:
    work, _ = KINDS[kind]
    for status in await work(session, seed):
        soak.answers[kind, status] += 1


@asynccontextmanager
async def _ask(session: aiohttp.ClientSession, **changes: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    body = {"model": "soak", "prompt": "hello world", "max_tokens": 32, **changes}
    async with session.post("/v1/completions", json=body) as response:
        assert response.status != 429 or response.headers["Retry-After"], "429 without Retry-After"
        yield response


async def _whole(session: aiohttp.ClientSession, seed: int) -> list[int]:
    async with _ask(session, seed=seed, n=2, logprobs=1, echo=bool(seed % 2)) as response:
        await response.read()
        return [response.status]


async def _streamed(session: aiohttp.ClientSession, seed: int) -> list[int]:
    async with _ask(session, seed=seed, stream=True, growtx={"attribution": True}) as response:
        text = await response.text()
        assert response.status != 200 or text.endswith("data: [DONE]\n\n"), text[-200:]
        return [response.status]


async def _left(session: aiohttp.ClientSession, seed: int) -> list[int]:
    """A client that goes away in the middle."""
    async with _ask(session, seed=seed, stream=True, max_tokens=400) as response:
        await response.content.readline()
        response.close()
        return [response.status]


async def _wrong(session: aiohttp.ClientSession, seed: int) -> list[int]:
    bodies: list[bytes] = [b"", b"{", b"[" * 5000, b"\xff\xfe", json.dumps({"model": "soak", "prompt": seed}).encode()]
    async with session.post("/v1/completions", data=bodies[seed % len(bodies)]) as response:
        await response.read()
        return [response.status]


async def _burst(session: aiohttp.ClientSession, seed: int) -> list[int]:
    """More at once than there is room for."""

    async def short(index: int) -> int:
        async with _ask(session, seed=seed + index, max_tokens=8) as response:
            await response.read()
            return response.status

    return list(await asyncio.gather(*(short(index) for index in range(BURST_SIZE))))


KINDS = {
    "whole": (_whole, 30),
    "streamed": (_streamed, 40),
    "left": (_left, 15),
    "wrong": (_wrong, 14),
    "burst": (_burst, 1),
}
