"""How fast the engine serves: beside the best that a user would write or pick instead, and what the hardware allows.

All run on weights, prompts and threads of the same values, in turns, in one process; the engine is driven as the front
end drives it, from the request to its tokens (front ends, which turn them into text, are processes of their own).

naive loop             what one would write first: one text after the other, one cached forward pass per member and
                       token, logits averaged
padded batch           what one would write next: prompts padded on the left, all texts in one batch until the longest
                       has ended, so that nobody may come later or leave earlier
continuous batching    of transformers, which knows single models only and chooses the likeliest token

Each has models of its own: an engine changes how those that it holds compute.

Shapes: B texts, T positions, V token ids.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from statistics import median
from typing import Any

import psutil
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from growtx.models import GrowtxConfig, GrowtxForCausalLM
from growtx.models.ensemble import from_members
from growtx.sampling import Choice, Sampling, choose
from growtx.serving.backbones import Depth
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
    num_threads: int = 1  # a core is left to whoever sends and receives

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
    ratio_to_best: float | None = None  # of the alternatives that serve the same model to as many clients


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


ENSEMBLE, MEMBER = "ensemble", "one member"
System = Callable[[list[Generation]], Timings]


def measure_serving(
    members: Members, tokenizer: PreTrainedTokenizerFast, workload: Workload | None = None
) -> list[ServingRow]:
    """Rows for the ensemble of all members and for the first member alone, served in every way, at 1, 8, 32 clients.

    Args:
        members: in evaluation mode, on CPU; `random_members` makes some.
        workload: its number of threads becomes torch's in this process.
    """
    workload = workload or Workload()
    torch.set_num_threads(workload.num_threads)
    ensemble = from_members(copy.deepcopy(members)).eval()
    ensemble.generation_config.eos_token_id = ensemble.config.eos_token_id = None  # every text has its full length
    models: dict[str, PreTrainedModel] = {ENSEMBLE: ensemble, MEMBER: next(iter(copy.deepcopy(members).values()))}
    hardware, rounds = Hardware.measure(), dict[tuple[str, str, int], list[Timings]]()
    alternatives = _alternatives(members, workload)
    with _engines(models, tokenizer) as engines:
        for _ in range(workload.num_rounds):
            for num_clients in CLIENTS:
                requests = workload.requests(num_clients, ensemble.config.vocab_size)
                for (model, way), serve in {**engines, **alternatives}.items():
                    rounds.setdefault((model, way, num_clients), []).append(serve(requests))
    return [
        replace(
            summarise(found, f"{model}, {way}", num_clients, hardware.bound(models[model], num_clients)),
            ratio_to_best=ratio_to_best(rounds, model, num_clients) if way == ENGINE else None,
        )
        for (model, way, num_clients), found in rounds.items()
    ]


def ratio_to_best(rounds: Mapping[tuple[str, str, int], Sequence[Timings]], model: str, num_clients: int) -> float:
    """The engine's tokens per second over those of whatever else is fastest in the same round; median of the rounds."""
    own = rounds[model, ENGINE, num_clients]
    others = [found for key, found in rounds.items() if (key[0], key[2]) == (model, num_clients) and key[1] != ENGINE]
    best = [max(timings.tokens_per_second for timings in at_once) for at_once in zip(*others, strict=True)]
    return float(median(timings.tokens_per_second / other for timings, other in zip(own, best, strict=True)))


def random_members(
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_members: int = 2,
    hidden_size: int = 256,
    num_blocks: int = 6,
    num_heads: int = 8,
    num_trunk_blocks: int = 0,
    vocab_size: int = 8192,
    context_length: int = 512,
) -> Members:
    """Members with random weights on one substrate: their speed does not depend on what they know.

    Args:
        num_trunk_blocks: lowest blocks that all of them share.
    """
    torch.manual_seed(0)
    shape = {"hidden_size": hidden_size, "num_hidden_layers": num_blocks, "num_attention_heads": num_heads}
    sizes = {"vocab_size": max(vocab_size, len(tokenizer)), "max_position_embeddings": context_length}
    members: Members = {}
    for index in range(num_members):
        model = GrowtxForCausalLM(GrowtxConfig(**shape, **sizes)).eval()
        if members:
            first = next(iter(members.values())).model
            model.model.embed_tokens = first.embed_tokens
            for depth in range(num_trunk_blocks):
                model.model.layers[depth] = first.layers[depth]
        members[f"member-{index}"] = model
    return members


# Members that share a trunk, beside one member alone.


@dataclass
class TrunkRow:
    """An ensemble whose members share a trunk; medians over the rounds.

    Attributes:
        share: of the trunk in a member's weights that every token is multiplied by, its head among them.
        ratio: tokens per second relative to one member alone, in the same round.
        bound: of the ratio, if time were proportional to these weights.
    """

    num_members: int
    num_clients: int
    share: float
    tokens_per_second: float
    ratio: float
    bound: float


def measure_trunk(
    tokenizer: PreTrainedTokenizerFast,
    workload: Workload | None = None,
    *,
    num_members: Sequence[int] = (2, 4),
    num_blocks: int = 6,
    **shape: int,
) -> list[TrunkRow]:
    """Ensembles with a trunk of half the depth, and one member of the same shape, in turns at the most clients.

    Args:
        shape: of `random_members`.
    """
    workload = workload or Workload()
    torch.set_num_threads(workload.num_threads)
    trunk = num_blocks // 2
    ensembles = {
        number: random_members(tokenizer, num_members=number, num_blocks=num_blocks, num_trunk_blocks=trunk, **shape)
        for number in (1, *num_members)
    }
    alone = next(iter(ensembles[1].values()))
    share = trunk * _num_weights(alone.model.layers[0]) / _num_weights(alone.model.layers, alone.lm_head)
    models = {str(number): from_members(members).eval() for number, members in ensembles.items() if number > 1}
    for model in models.values():
        model.generation_config.eos_token_id = model.config.eos_token_id = None
    speeds: dict[str, list[float]] = {}
    with _engines({"1": alone, **models}, tokenizer) as engines:
        requests = workload.requests(max(CLIENTS), alone.config.vocab_size)
        for _ in range(workload.num_rounds):
            for (name, _way), serve in engines.items():
                speeds.setdefault(name, []).append(serve(requests).tokens_per_second)
    return [
        TrunkRow(
            number,
            max(CLIENTS),
            share,
            median(speeds[str(number)]),
            median(one / lone for one, lone in zip(speeds[str(number)], speeds["1"], strict=True)),
            1 / (share + number * (1 - share)),
        )
        for number in num_members
    ]


# All depths of a grown model in one engine, beside an engine for each.


@dataclass
class DepthsRow:
    """Texts of several depths that come at once.

    Attributes:
        tokens_per_second: of one engine that runs all of them together; median over the rounds.
        ratio: to engines of their own, each with its texts and all of the machine, one after the other.
    """

    depths: tuple[int, ...]
    num_clients: int
    tokens_per_second: float
    ratio: float


def random_stages(
    tokenizer: PreTrainedTokenizerFast, depths: Sequence[int], **shape: int
) -> dict[int, GrowtxForCausalLM]:
    """What growth leaves, with random weights: blocks in common, and a norm and a head for every depth."""
    (whole,) = random_members(tokenizer, num_members=1, num_blocks=max(depths), **shape).values()
    stages = {max(depths): whole}
    for depth in sorted(depths)[:-1]:
        stage = GrowtxForCausalLM(GrowtxConfig(**{**whole.config.to_dict(), "num_hidden_layers": depth})).eval()
        in_common = [(stage.model.embed_tokens, whole.model.embed_tokens)]
        for ours, theirs in (*in_common, *zip(stage.model.layers, whole.model.layers, strict=False)):
            for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                parameter.data = other.data
        stages[depth] = stage
    for stage in stages.values():
        stage.generation_config.eos_token_id = stage.config.eos_token_id = None
    return stages


def measure_depths(
    tokenizer: PreTrainedTokenizerFast,
    workload: Workload | None = None,
    *,
    depths: Sequence[int] = (2, 4, 6),
    **shape: int,
) -> list[DepthsRow]:
    """Texts of all depths in turns, in one engine and in engines of their own, at 8 and 32 clients.

    Args:
        shape: of `random_members`.
    """
    workload = workload or Workload()
    torch.set_num_threads(workload.num_threads)
    stages = random_stages(tokenizer, depths, **shape)
    start = partial(Engines, tokenizer=tokenizer, max_batch_size=max(CLIENTS), kv_cache_gib=0.5)
    together = start(_as_served(stages))
    apart = {depth: start({None: copy.deepcopy(stage)}) for depth, stage in stages.items()}
    speeds: dict[int, list[tuple[float, float]]] = {}
    try:
        for _ in range(workload.num_rounds):
            for num_clients in CLIENTS[1:]:
                asked = workload.requests(num_clients, stages[depths[0]].config.vocab_size)
                mixed = [replace(one, depth=depths[index % len(depths)]) for index, one in enumerate(asked)]
                own = [[one for one, other in zip(asked, mixed, strict=True) if other.depth == d] for d in depths]
                seconds = sum(_serve_all(apart[d], texts).seconds for d, texts in zip(depths, own, strict=True))
                num_tokens = num_clients * workload.num_new_tokens
                speed = _serve_all(together, mixed).tokens_per_second
                speeds.setdefault(num_clients, []).append((speed, speed / (num_tokens / seconds)))
    finally:
        for engines in (together, *apart.values()):
            engines.stop()
    return [
        DepthsRow(tuple(depths), number, median(speed for speed, _ in found), median(ratio for _, ratio in found))
        for number, found in speeds.items()
    ]


def _as_served(stages: Mapping[int, GrowtxForCausalLM]) -> dict[Depth, PreTrainedModel]:
    models: dict[Depth, PreTrainedModel] = {None: stages[max(stages)]}
    models.update(stages.items())
    return models


def measure_memory_of_depths(
    tokenizer: PreTrainedTokenizerFast, *, depths: Sequence[int] = (2, 4, 6), **shape: int
) -> dict[str, float]:
    """MiB of a process once its engine has answered 32 texts: of the deepest depth alone, and of all."""
    found = {}
    for name, served in (("the deepest", tuple(depths)[-1:]), ("all", tuple(depths))):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[name] = pool.submit(_memory_of, tokenizer, tuple(depths), served, shape).result()
    return found


def _memory_of(
    tokenizer: PreTrainedTokenizerFast, depths: tuple[int, ...], served: tuple[int, ...], shape: dict[str, int]
) -> float:
    workload = Workload(num_new_tokens=16)
    torch.set_num_threads(workload.num_threads)
    stages = {depth: stage for depth, stage in random_stages(tokenizer, depths, **shape).items() if depth in served}
    deepest = stages[max(served)]
    engines = Engines(_as_served(stages), tokenizer, max_batch_size=max(CLIENTS), kv_cache_gib=0.5)
    asked = workload.requests(max(CLIENTS), deepest.config.vocab_size)
    _serve_all(engines, [replace(one, depth=served[i % len(served)]) for i, one in enumerate(asked)])
    gc.collect()
    after = psutil.Process().memory_info().rss
    engines.stop()
    return float(after) / 2**20


def _num_weights(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.dim() > 1)


ENGINE = "this engine"


@contextmanager
def _engines(
    models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> Iterator[dict[tuple[str, str], System]]:
    engines = {name: Engines({None: model}, tokenizer, max_batch_size=max(CLIENTS)) for name, model in models.items()}
    try:
        yield {(name, ENGINE): partial(_serve_all, engine) for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.stop()


def _serve_all(engine: Engines, requests: list[Generation]) -> Timings:
    return asyncio.run(_serve(engine, requests))


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


def _alternatives(members: Members, workload: Workload) -> dict[tuple[str, str], System]:
    both = list(copy.deepcopy(members).values())
    first = list(copy.deepcopy(members).values())[:1]
    return {
        (ENSEMBLE, "naive loop"): lambda requests: _naive(both, requests[: workload.num_naive_texts]),
        (ENSEMBLE, "padded batch"): lambda requests: padded_batch(both, requests)[0],
        (MEMBER, "padded batch"): lambda requests: padded_batch(first, requests)[0],
        (MEMBER, "continuous batching"): _continuous_batching(copy.deepcopy(first[0]), workload),
    }


def _naive(members: list[GrowtxForCausalLM], requests: list[Generation]) -> Timings:
    """One text after the other; each counts from its own beginning."""
    timings, start = Timings(), time.perf_counter()
    for request in requests:
        timings.arrivals += padded_batch(members, [request])[0].arrivals
    timings.seconds = time.perf_counter() - start
    return timings


@torch.inference_mode()
def padded_batch(members: list[GrowtxForCausalLM], requests: list[Generation]) -> tuple[Timings, list[list[int]]]:
    """All texts in one batch, prompts padded on the left; also returns their new tokens."""
    start, longest = time.perf_counter(), max(len(request.token_ids) for request in requests)
    padding = [longest - len(request.token_ids) for request in requests]
    new_BT = torch.tensor([[0] * n + list(request.token_ids) for n, request in zip(padding, requests, strict=True)])
    mask_BT = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
    caches, times, texts = [None] * len(members), list[float](), [list[int]() for _ in requests]
    for step in range(requests[0].max_tokens):
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -new_BT.shape[1] :]
        outputs = [
            member(
                new_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            for member, cache in zip(members, caches, strict=True)
        ]
        caches = [output.past_key_values for output in outputs]
        scores_BV = torch.stack([output.logits[:, -1] for output in outputs]).mean(0)
        places = [Choice(request.sampling, len(request.token_ids) + step) for request in requests]
        for text, token in zip(texts, choose(scores_BV.float(), places), strict=True):
            text.append(token)
        new_BT = torch.tensor([text[-1:] for text in texts])
        mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=1)
        times.append(time.perf_counter() - start)
    return Timings([list(times) for _ in requests], times[-1]), texts


PAGE_TOKENS = 32


def _continuous_batching(model: GrowtxForCausalLM, workload: Workload) -> System:
    """Room for all texts at once. Started before the time is taken, and ended after it: its thread never rests."""
    longest = workload.longest_prompt + workload.num_new_tokens
    pages = max(CLIENTS) * (longest // PAGE_TOKENS + 2)
    batching = ContinuousBatchingConfig(page_size=PAGE_TOKENS, num_blocks=pages, max_batch_tokens=512)
    generation = GenerationConfig(max_new_tokens=workload.num_new_tokens, do_sample=False, eos_token_id=-1)

    def serve(requests: list[Generation]) -> Timings:
        found: list[Any] = []
        with model.continuous_batching_context_manager(generation, continuous_batching_config=batching) as manager:
            start = time.perf_counter()
            manager.add_requests([list(request.token_ids) for request in requests], record_timestamps=True)
            while len(found) < len(requests):
                output = manager.get_result(timeout=1)
                if output is not None and output.is_finished():
                    found.append(output)
            seconds = time.perf_counter() - start
        return Timings([[at - start for at in output.timestamps] for output in found], seconds)

    return serve


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
