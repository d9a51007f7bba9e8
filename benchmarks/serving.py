"""How fast the engine serves: compared with the naive loop, with one member alone, and with what the hardware allows.

All three run on the same weights, prompts and threads, in turns, in one process; the engine is driven as the front
end drives it, from the request to its tokens (front ends, which turn them into text, are processes of their own). The
naive loop is what one would write first: one text after the other, one cached forward pass per member and token,
logits averaged.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from growtx.models import GrowtxConfig, GrowtxForCausalLM
from growtx.models.ensemble import from_members
from growtx.sampling import Sampling, choose
from growtx.serving.engine import Engines
from growtx.serving.requests import Generation

CLIENTS = (1, 8, 32)
Members = dict[str, GrowtxForCausalLM]


@dataclass(frozen=True)
class Workload:
    """What every client asks for."""

    num_new_tokens: int = 48
    shortest_prompt: int = 16
    longest_prompt: int = 96
    num_rounds: int = 3
    num_naive_texts: int = 4

    def requests(self, num_clients: int, vocab_size: int) -> list[Generation]:
        """One text per client, the same in every run."""
        generator = random.Random(0)
        lengths = [generator.randint(self.shortest_prompt, self.longest_prompt) for _ in range(num_clients)]
        prompts = [tuple(generator.randrange(4, vocab_size) for _ in range(length)) for length in lengths]
        return [Generation(prompt, self.num_new_tokens, Sampling(seed=index)) for index, prompt in enumerate(prompts)]


@dataclass
class ServingRow:
    """A line of the table: the median of the rounds' tokens per second, and quantiles over the texts of all rounds."""

    system: str
    num_clients: int
    tokens_per_second: float
    first_token_p50_seconds: float
    first_token_p99_seconds: float
    inter_token_p50_seconds: float
    inter_token_p99_seconds: float
    bound_tokens_per_second: float
    ratio_to_naive: float = 1.0


@dataclass
class Timings:
    """Arrival times of every text's tokens since its request."""

    arrivals: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.arrivals)) / self.seconds


def summarise(rounds: Sequence[Timings], system: str, num_clients: int, bound: float) -> ServingRow:
    """The row of a system at a number of clients."""
    texts = [times for timings in rounds for times in timings.arrivals]
    firsts = sorted(times[0] for times in texts)
    gaps = sorted(after - before for times in texts for before, after in pairwise(times))
    return ServingRow(
        system,
        num_clients,
        median(timings.tokens_per_second for timings in rounds),
        median(firsts),
        _p99(firsts),
        median(gaps),
        _p99(gaps),
        bound,
    )


def _p99(values: Sequence[float]) -> float:
    """Of sorted values: the smallest that 99 of 100 do not exceed."""
    return values[math.ceil(0.99 * len(values)) - 1]


def measure_serving(
    members: Members, tokenizer: PreTrainedTokenizerFast, workload: Workload | None = None
) -> list[ServingRow]:
    """Rows for the ensemble of all members, the first member alone, and the naive loop, at 1, 8 and 32 clients.

    Args:
        members: in evaluation mode, on CPU; `random_members` makes some.
    """
    workload = workload or Workload()
    ensemble = from_members(members).eval()
    ensemble.generation_config.eos_token_id = ensemble.config.eos_token_id = None  # every text has its full length
    hardware = Hardware.measure()
    naive_rounds, rounds = list[Timings](), dict[tuple[str, int], list[Timings]]()
    models = {"ensemble": ensemble, "one member": next(iter(members.values()))}
    with _engines(models, tokenizer) as engines:
        for _ in range(workload.num_rounds):
            naive_rounds.append(_naive(list(members.values()), workload))
            for num_clients in CLIENTS:
                requests = workload.requests(num_clients, ensemble.config.vocab_size)
                for system, engine in engines.items():
                    rounds.setdefault((system, num_clients), []).append(asyncio.run(_serve(engine, requests)))
    naive = summarise(naive_rounds, "naive loop", 1, hardware.bound(ensemble, 1))
    served = [
        summarise(found, system, num_clients, hardware.bound(models[system], num_clients))
        for (system, num_clients), found in rounds.items()
    ]
    return [naive, *(replace(row, ratio_to_naive=row.tokens_per_second / naive.tokens_per_second) for row in served)]


def random_members(
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_members: int = 2,
    hidden_size: int = 256,
    num_blocks: int = 6,
    num_heads: int = 8,
    vocab_size: int = 8192,
    context_length: int = 512,
) -> Members:
    """Members with random weights on one substrate: their speed does not depend on what they know."""
    torch.manual_seed(0)
    shape = {"hidden_size": hidden_size, "num_hidden_layers": num_blocks, "num_attention_heads": num_heads}
    sizes = {"vocab_size": max(vocab_size, len(tokenizer)), "max_position_embeddings": context_length}
    members: Members = {}
    for index in range(num_members):
        model = GrowtxForCausalLM(GrowtxConfig(**shape, **sizes)).eval()
        if members:
            model.model.embed_tokens = next(iter(members.values())).model.embed_tokens
        members[f"member-{index}"] = model
    return members


@contextmanager
def _engines(models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, Engines]]:
    engines = {name: Engines({None: model}, tokenizer, max_batch_size=max(CLIENTS)) for name, model in models.items()}
    yield engines
    for engine in engines.values():
        engine.stop()


async def _serve(engine: Engines, requests: list[Generation]) -> Timings:
    timings, start = Timings(), time.perf_counter()

    async def client(request: Generation) -> None:
        arrivals: list[float] = []
        async for tokens in engine.generate(request):
            arrivals += [time.perf_counter() - start] * len(tokens)
        timings.arrivals.append(arrivals)

    await asyncio.gather(*(client(request) for request in requests))
    timings.seconds = time.perf_counter() - start
    return timings


@torch.inference_mode()
def _naive(members: list[GrowtxForCausalLM], workload: Workload) -> Timings:
    timings, start = Timings(), time.perf_counter()
    for request in workload.requests(workload.num_naive_texts, members[0].config.vocab_size):
        begin, arrivals = time.perf_counter(), []
        caches = [None] * len(members)
        new_ids, position = torch.tensor([request.token_ids]), len(request.token_ids)
        for _ in range(request.max_tokens):
            outputs = [
                member(new_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                for member, cache in zip(members, caches, strict=True)
            ]
            caches = [output.past_key_values for output in outputs]
            scores_V = torch.stack([output.logits[0, -1] for output in outputs]).mean(0)
            new_ids, position = torch.tensor([[choose(scores_V, request.sampling, position)]]), position + 1
            arrivals.append(time.perf_counter() - begin)
        timings.arrivals.append(arrivals)
    timings.seconds = time.perf_counter() - start
    return timings


@dataclass(frozen=True)
class Hardware:
    """The best that this machine can do with torch's current threads."""

    bytes_per_second: float
    flops_per_second: float

    @classmethod
    def measure(cls) -> Hardware:
        long = torch.ones(32 * 2**20)  # 128 MiB: larger than the caches
        square = torch.randn(1024, 1024)
        return cls(
            long.numel() * long.itemsize / _best_seconds(long.sum),
            2 * 1024**3 / _best_seconds(lambda: square @ square),
        )

    def bound(self, model: PreTrainedModel, num_clients: int) -> float:
        """Tokens per second if a step only read every weight once, or only multiplied by each."""
        numbers = [p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name]
        weight_bytes, num_weights = sum(numbers) * model.dtype.itemsize, sum(numbers)
        step_seconds = max(weight_bytes / self.bytes_per_second, 2 * num_weights * num_clients / self.flops_per_second)
        return float(num_clients / step_seconds)


def _best_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
