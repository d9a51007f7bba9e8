"""Continuous batching over one stack of blocks: requests join and leave at every step, each samples in its own way."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from growtx.compat.transformers import (
    StepRequest,
    batching_manager,
    cause_of_end,
    heads_in_cache,
    is_ready,
    num_cache_blocks,
    request_name,
    set_attention,
)
from growtx.data.tokenizer import start_token_id
from growtx.exceptions import ConfigError
from growtx.models.varlen_attention import register_varlen_attention
from growtx.sampling import Choice, Sampling, TextSoFar, eos_token_ids
from growtx.serving.backbones import Depth, Depths, deepest, num_blocks_of, stacks_of
from growtx.serving.decoder import Decoder, Place
from growtx.serving.requests import EngineError, Generation, ModelInfo, OverloadedError, Token

PAGE_SIZE = 32  # positions per page of the cache, and the granularity in which prompts share their beginnings
BYTES_PER_GIB = 2**30
FREE_SHARE = 0.9  # of a GPU's free memory: a step needs some, too
START_POLL_SECONDS = 0.002
ABANDONED = Sampling(temperature=0.0)  # for a request whose consumer left a moment ago


@dataclass(eq=False)
class Stream:
    """A running request as its consumer sees it: tokens arrive in the queue from the generation thread."""

    sampling: Sampling
    depth: Depth
    num_left: int
    loop: asyncio.AbstractEventLoop
    text: TextSoFar
    queue: asyncio.Queue[Token | EngineError] = field(default_factory=asyncio.Queue)


class Engine:
    """One stack of blocks, one cache, one generation thread, and all depths of a lineage that are parts of the stack.

    Args:
        models: causal language models or ensembles in evaluation mode, by the depth that requests ask for.
        max_batch_size: requests that are computed together.
        max_queue: further requests that may wait.
        max_batch_tokens: new tokens per step; longer prompts are read over several steps.
        kv_cache_gib: memory for keys and values; requests that do not fit wait or are computed again later.
    """

    def __init__(
        self,
        models: Depths,
        *,
        max_batch_size: int = 32,
        max_queue: int = 32,
        max_batch_tokens: int = 512,
        kv_cache_gib: float = 1.0,
    ) -> None:
        self.decoder = Decoder(models, self._after_step)
        model = deepest(models)
        if model.device.type == "cpu":
            set_attention(self.decoder.config, register_varlen_attention())
        self.max_batch_size = max_batch_size
        self.max_queue = max_queue
        self.context_length: int = model.config.max_position_embeddings
        self.eos_token_ids = eos_token_ids(model.config, model.generation_config)
        self._streams: dict[str, Stream] = {}
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._num_scoring = 0
        num_pages = _num_pages(self.decoder, max_batch_size * self.context_length, self.context_length, kv_cache_gib)
        self._manager = batching_manager(
            self.decoder,
            GenerationConfig(do_sample=False, eos_token_id=self.eos_token_ids or -1),
            ContinuousBatchingConfig(
                page_size=PAGE_SIZE,
                num_blocks=num_cache_blocks(self.decoder.config, num_pages),
                max_batch_tokens=max(max_batch_tokens, max_batch_size),
                max_requests_per_batch=max_batch_size,
                use_async_batching=False,
                use_cuda_graph=False,  # the choice of tokens runs Python
            ),
            before_step=self._before_step,
            on_error=self._fail,
        )
        self._step_streams: list[Stream | None] = []
        self._depth_of = {self.decoder.num_blocks(depth): depth for depth in models}
        self.batch_size = 0

    def start(self) -> None:
        """Start the generation thread, and wait until it is ready.

        Starting seeds torch's global random generator, which would spoil what others draw from it at the same time.

        Raises:
            EngineError: it could not start.
        """
        self._manager.start()
        while not is_ready(self._manager) and self._manager.is_running():
            time.sleep(START_POLL_SECONDS)
        self.check_health()

    def stop(self) -> None:
        """End the generation thread; running requests fail with `EngineError`."""
        self._manager.stop(block=True, hard_stop=True)

    @property
    def num_running(self) -> int:
        """Requests that run or wait."""
        return len(self._streams) + self._num_scoring

    def check_health(self) -> None:
        """Raise `EngineError` if the generation thread has died."""
        if not self._manager.is_running():
            raise EngineError(f"the generation thread ended: {cause_of_end(self._manager)}")

    async def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        """Continue a text; yields the tokens that are new since the last time.

        The last token has a `finish_reason`: `stop` after an end-of-text token, else `length`. Leaving the iterator
        frees the request's place at the next step.

        Raises:
            OverloadedError: no place is free, before anything was computed.
            EngineError: the generation thread ended.
        """
        if self.num_running >= self.max_batch_size + self.max_queue:
            raise OverloadedError(f"{self.num_running} requests are running or waiting")
        name = request_name(uuid.uuid4().hex, self.decoder.num_blocks(request.depth))
        loop, text = asyncio.get_running_loop(), request.text_so_far()
        stream = Stream(request.sampling, request.depth, request.max_tokens, loop, text)
        self._streams[name] = stream
        is_finished = False
        try:
            self._submit(name, request)
            while not is_finished:
                tokens = await _next_tokens(stream.queue)
                is_finished = tokens[-1].finish_reason is not None
                yield tokens
        finally:
            del self._streams[name]
            if not is_finished:
                self._manager.cancel_request(name)

    def _submit(self, name: str, request: Generation) -> None:
        accepted = self._manager.add_request(
            list(request.token_ids),
            request_id=name,
            max_new_tokens=request.max_tokens,
            eos_token_id=-1 if request.sampling.ignore_eos else self.eos_token_ids,
        )
        if accepted is None:
            raise EngineError("the generation thread is stopping")

    async def score(self, token_ids: tuple[int, ...], sampling: Sampling, depth: Depth = None) -> list[Token]:
        """Tokens of a prompt from the second on with their probabilities.

        Raises:
            OverloadedError: no place is free; a scoring takes one like any other request, and they run one by one.
        """
        if self.num_running >= self.max_batch_size + self.max_queue:
            raise OverloadedError(f"{self.num_running} requests are running or waiting")
        self._num_scoring += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._scorer, self.decoder.score, token_ids, sampling, depth)
        finally:
            self._num_scoring -= 1

    def _before_step(self, requests: list[StepRequest]) -> None:
        """Called in the generation thread with the requests of the coming step."""
        self._step_streams = [self._streams.get(request.name) for request in requests if request.gets_token]
        self.decoder.places = [self._place(request, self._streams.get(request.name)) for request in requests]

    def _place(self, request: StepRequest, stream: Stream | None) -> Place:
        if stream is None:  # who comes later may still use its pages, so it runs through all the blocks that it names
            depth = self._depth_of[request.num_blocks]
            return Place(depth, Choice(ABANDONED, 0) if request.gets_token else None)
        choice = Choice(stream.sampling, request.num_tokens, stream.text) if request.gets_token else None
        return Place(stream.depth, choice)

    def _after_step(self, tokens: list[Token]) -> None:
        """Called in the generation thread with the tokens that were chosen; one wake-up of the event loop for all."""
        news = []
        for stream, token in zip(self._step_streams, tokens, strict=True):
            if stream is not None:
                stream.num_left -= 1
                stream.text.counts[token.id] += 1
                news.append((stream, self._finished(token, stream)))
        if news:
            self.batch_size = len(news)
            news[0][0].loop.call_soon_threadsafe(_deliver, news)

    def _finished(self, token: Token, stream: Stream) -> Token:
        if token.id in self.eos_token_ids and not stream.sampling.ignore_eos:
            return replace(token, finish_reason="stop")
        return token if stream.num_left else replace(token, finish_reason="length")

    def _fail(self, name: str, problem: str) -> None:
        """Called in the generation thread for a request that cannot continue."""
        stream = self._streams.get(name)
        if stream is not None:
            stream.loop.call_soon_threadsafe(stream.queue.put_nowait, EngineError(problem))


def _deliver(news: list[tuple[Stream, Token]]) -> None:
    for stream, token in news:
        stream.queue.put_nowait(token)


async def _next_tokens(queue: asyncio.Queue[Token | EngineError]) -> list[Token]:
    """At least one token, and whatever else has arrived."""
    items = [await queue.get()]
    while not queue.empty():
        items.append(queue.get_nowait())
    tokens = [item for item in items if isinstance(item, Token)]
    if not tokens:
        raise next(item for item in items if isinstance(item, EngineError))
    return tokens


def _num_pages(model: Decoder, wanted_tokens: int, context_length: int, kv_cache_gib: float) -> int:
    """Pages that the budget buys, no more than a full batch can use."""
    config = model.config
    page_bytes: int = 2 * PAGE_SIZE * heads_in_cache(config) * config.head_dim * model.dtype.itemsize
    affordable = int(kv_cache_gib * BYTES_PER_GIB) // page_bytes
    needed = context_length // PAGE_SIZE + 1
    if affordable < needed:
        raise ConfigError(
            f"kv_cache_gib={kv_cache_gib:g} holds {affordable * PAGE_SIZE} positions of this model, fewer than one "
            f"text of {context_length}",
            f"Set it to {math.ceil(needed * page_bytes / BYTES_PER_GIB * 1000) / 1000:g} or more",
        )
    return min(affordable, wanted_tokens // PAGE_SIZE + 1)


def shares_of(models: Sequence[PreTrainedModel], kv_cache_gib: float | None) -> list[float]:
    """What each stack's cache gets of one budget, in GiB: as much as it has blocks, so that all hold as many positions.

    Args:
        models: the deepest of every stack.
        kv_cache_gib: the budget; None: most of what is free on the device that all models are on.
    """
    if kv_cache_gib is None:
        kv_cache_gib = FREE_SHARE * torch.cuda.mem_get_info(models[0].device)[0] / BYTES_PER_GIB
    blocks = [num_blocks_of(model) for model in models]
    return [kv_cache_gib * number / sum(blocks) for number in blocks]


# All engines of one process: one for all depths of a lineage that have their blocks in common, mostly the only one.


class Engines:
    """Every depth of a lineage, in this process.

    Args:
        models: by depth; `None` serves requests that name no depth.
        kv_cache_gib: memory for the keys and values of all engines together; None: most of what the GPU has left.
        options: of every `Engine`.
    """

    def __init__(
        self,
        models: Depths,
        tokenizer: PreTrainedTokenizerFast,
        *,
        kv_cache_gib: float | None = 1.0,
        **options: int,
    ) -> None:
        stacks = stacks_of(models)
        shares = shares_of([deepest(stack) for stack in stacks], kv_cache_gib)
        self._engines: dict[Depth, Engine] = {}
        self._distinct = [
            Engine(stack, kv_cache_gib=share, **options) for stack, share in zip(stacks, shares, strict=True)
        ]
        for stack, engine in zip(stacks, self._distinct, strict=True):
            self._engines |= dict.fromkeys(stack, engine)
        self._tokenizer = tokenizer
        for engine in self._distinct:
            engine.start()

    def stop(self) -> None:
        """End all generation threads."""
        for engine in self._distinct:
            engine.stop()

    def check_health(self) -> None:
        """Raise `EngineError` if a generation thread has died."""
        for engine in self._distinct:
            engine.check_health()

    @property
    def num_running(self) -> int:
        """Texts that run or wait."""
        return sum(engine.num_running for engine in self._distinct)

    @property
    def batch_size(self) -> int:
        """Texts that the last step computed together."""
        return max(engine.batch_size if engine.num_running else 0 for engine in self._distinct)

    async def card(self) -> ModelInfo:
        engine = self._engines[None]
        return ModelInfo(
            tokenizer_json=self._tokenizer.backend_tokenizer.to_str(),
            vocab_size=engine.decoder.config.vocab_size,
            context_length=engine.context_length,
            depths=tuple(sorted(depth for depth in self._engines if depth is not None)),
            members=engine.decoder.members,
            rules=tuple(engine.decoder.rules),
            start_token_id=start_token_id(self._tokenizer),
            max_texts=engine.max_batch_size,
            special_tokens=_special_tokens(self._tokenizer),
            chat_template=_chat_template(self._tokenizer),
        )

    def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        return self._engines[request.depth].generate(request)

    async def score(self, token_ids: tuple[int, ...], sampling: Sampling, depth: int | None) -> list[Token]:
        return await self._engines[depth].score(token_ids, sampling, depth)

    async def metrics(self) -> str:
        return f"# TYPE growtx_running_texts gauge\ngrowtx_running_texts {self.num_running}\n"


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {role: str(token) for role in roles if (token := getattr(tokenizer, role, None)) is not None}


def _chat_template(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The template that the tokenizer brings, the default one of several; None for most base models."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
