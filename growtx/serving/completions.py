"""From a completion request to texts, and from texts to the answer or the events of a stream."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from growtx.sampling import Sampling, seed_of_choice
from growtx.serving.errors import ApiError, overloaded, unavailable
from growtx.serving.metrics import IngressMetrics, TextClock
from growtx.serving.protocol import Attribution, Choice, Completion, CompletionRequest, Logprobs, Usage
from growtx.serving.requests import Backend, EngineError, Generation, ModelInfo, OverloadedError, Token
from growtx.serving.settings import RequestLimits
from growtx.serving.text import Codec, Piece, TextStream

DEFAULT_MAX_TOKENS = 16
PATIENCE_SECONDS = 60.0  # that later texts of a large request wait for a place
RETRY_SECONDS = 0.2
RULES_OF_PROBABILITIES = ("mixture", "posterior", "cluster")


class _Shared:
    """A result that several texts wait for and one of them computes."""

    def __init__(self) -> None:
        self._task: asyncio.Task[list[Token]] | None = None

    async def get(self, compute: Callable[[], Coroutine[Any, Any, list[Token]]]) -> list[Token]:
        if self._task is None or (self._task.done() and (self._task.cancelled() or self._task.exception())):
            self._task = asyncio.create_task(compute())
        return await asyncio.shield(self._task)


@dataclass(frozen=True)
class Prompt:
    """What a text begins with.

    Attributes:
        text: what `echo` returns.
        num_hidden: tokens at the beginning that no client sees (the start token before a text).
        stop: sequences that end a text, besides those of its request.
        name: of the field of the request that it was made from.
    """

    token_ids: list[int]
    text: str = ""
    num_hidden: int = 0
    stop: tuple[str, ...] = ()
    name: str = "prompt"


@dataclass
class Job:
    """One text of a request."""

    index: int
    request: Generation
    prompt: Prompt
    scores: _Shared  # of the prompt, for all of its texts
    num_generated: int = 0


Events = asyncio.Queue[tuple[Job, Piece | Exception]]


class Completions:
    """Everything between the HTTP layer and the engines."""

    def __init__(
        self, backend: Backend, card: ModelInfo, limits: RequestLimits, name: str, metrics: IngressMetrics
    ) -> None:
        self.backend = backend
        self.card = card
        self.limits = limits
        self.name = name
        self.metrics = metrics
        self.codec = Codec(card)

    async def run(self, body: CompletionRequest, prompt: Prompt | None = None) -> AsyncGenerator[Completion, None]:
        """Parts of the answer as they come; the last one has the usage and no choices.

        The first part comes when every text of the request has its first token, so whoever gets it can answer 200.

        Args:
            prompt: instead of those in the body.

        Raises:
            ApiError: the request is wrong, or there is no room; after the first part only if engines fail for good.
        """
        jobs = self._jobs(body, prompt)
        first_wave = jobs[: self.card.max_texts]  # an engine has no room for more at once; the others follow
        room = asyncio.Semaphore(self.card.max_texts)
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        events: Events = asyncio.Queue()
        tasks = [asyncio.create_task(self._generate(job, body, events, room, first_wave)) for job in jobs]
        try:
            held: list[tuple[Job, Piece]] | None = []
            running = len(jobs)
            while running:
                job, item = await events.get()
                if isinstance(item, Exception):
                    raise item
                running -= item.finish_reason is not None
                if held is None:
                    yield Completion(**head, choices=[self._choice(job, item, body)], usage=_usage(jobs, body.n or 1))
                    continue
                held.append((job, item))
                begun = {other.index for other, piece in held if piece.is_generated}
                if all(other.index in begun for other in first_wave):
                    for other, piece in held:
                        choice = self._choice(other, piece, body)
                        yield Completion(**head, choices=[choice], usage=_usage(jobs, body.n or 1))
                    held = None
            yield Completion(**head, choices=[], usage=_usage(jobs, body.n or 1))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, body: CompletionRequest, prompt: Prompt | None = None) -> Completion:
        """The whole answer at once."""
        texts: dict[int, list[Choice]] = {}
        async with aclosing(self.run(body, prompt)) as parts:
            async for part in parts:
                for choice in part.choices:
                    texts.setdefault(choice.index, []).append(choice)
        part.choices = [_joined(texts[index]) for index in sorted(texts)]
        return part

    def _jobs(self, body: CompletionRequest, given: Prompt | None) -> list[Job]:
        self.check(body)
        num_texts = body.n or 1
        jobs: list[Job] = []
        with_start = body.add_special_tokens is not False
        for prompt in [given] if given else [self._read_prompt(sent, with_start=with_start) for sent in body.prompts]:
            max_tokens = self._room(body, prompt)
            scores = _Shared()
            for choice in range(num_texts):
                seed = secrets.randbits(63) if body.seed is None else seed_of_choice(body.seed, choice)
                sampling = self._sampling(body, seed)
                depth, num_hidden = body.extension.depth, prompt.num_hidden
                request = Generation(tuple(prompt.token_ids), max_tokens, sampling, depth, num_hidden)
                jobs.append(Job(len(jobs), request, prompt, scores))
        return jobs

    def _sampling(self, body: CompletionRequest, seed: int) -> Sampling:
        extension = body.extension
        return Sampling(
            seed=seed,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            min_p=body.min_p or 0.0,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
            min_tokens=body.min_tokens or 0,
            ignore_eos=bool(body.ignore_eos),
            num_logprobs=body.logprobs,
            rule=extension.rule if self.card.rules else None,
            weights=None if extension.weights is None else tuple(extension.weights),
            attribution=extension.attribution,
        )

    def check_model(self, name: str) -> None:
        """Refuse a name that is not the served one."""
        if name != self.name:
            raise ApiError(404, f"The model is {self.name}", param="model", code="model_not_found")

    def check(self, body: CompletionRequest) -> None:
        """Check what depends on the model and the settings; the rest is in the schema."""
        self.check_model(body.model)
        if len(body.prompts) * (body.n or 1) > self.limits.max_choices:
            raise ApiError(400, f"prompts times n may be at most {self.limits.max_choices}", param="n")
        if len(body.stop_sequences) > self.limits.max_stop_sequences:
            raise ApiError(400, f"stop may have at most {self.limits.max_stop_sequences} sequences", param="stop")
        extension, card = body.extension, self.card
        if any(int(token) >= card.vocab_size for token in body.logit_bias or ()):
            raise ApiError(400, f"logit_bias: token ids must be below {card.vocab_size}", param="logit_bias")
        if extension.rule is not None and extension.rule not in (card.rules or ("mean",)):
            raise ApiError(400, f"growtx.rule must be one of {', '.join(card.rules or ('mean',))}", param="growtx.rule")
        if extension.depth is not None and extension.depth not in card.depths:
            known = ", ".join(map(str, card.depths)) or "none, leave it out"
            raise ApiError(400, f"growtx.depth must be one of: {known}", param="growtx.depth")
        if extension.weights is not None:
            _check_weights(extension.weights, len(card.members), extension.rule or card.rules[0] if card.rules else "")

    def _read_prompt(self, sent: str | list[int], *, with_start: bool) -> Prompt:
        if isinstance(sent, str):
            token_ids = self.codec.encode(sent)
            if token_ids is None:
                raise self.too_long("prompt", 1)
            if with_start or len(token_ids) == 1:  # an empty prompt is the beginning of a document
                return Prompt(token_ids, sent, num_hidden=1)
            return Prompt(token_ids[1:], sent)
        if max(sent) >= self.card.vocab_size:
            raise ApiError(400, f"Token ids must be below {self.card.vocab_size}", param="prompt")
        return Prompt(sent, self.codec.decode(sent))

    def _room(self, body: CompletionRequest, prompt: Prompt) -> int:
        """Tokens to generate: what was asked for, or what the context still holds."""
        num_tokens = len(prompt.token_ids)
        room = self.card.context_length - num_tokens
        if room < 0 or (room == 0 and body.max_tokens):
            raise self.too_long(prompt.name, prompt.num_hidden, num_tokens - prompt.num_hidden)
        wanted = max(DEFAULT_MAX_TOKENS, body.min_tokens or 0) if body.max_tokens is None else body.max_tokens
        return min(wanted, room)

    def too_long(self, name: str, num_hidden: int, num_tokens: int | None = None) -> ApiError:
        """The error for a prompt that the model's context does not hold; `name` is the field it was made from."""
        limit = self.card.context_length - num_hidden
        found = f"more than {limit}" if num_tokens is None else num_tokens
        message = f"{name}: the model's context has {limit} tokens, and the prompt has {found}"
        return ApiError(400, message, param=name, code="context_length_exceeded")

    async def _generate(
        self, job: Job, body: CompletionRequest, events: Events, room: asyncio.Semaphore, first_wave: list[Job]
    ) -> None:
        """Put the pieces of one text into the queue of events, errors included."""
        try:
            async with room:
                patience = 0.0 if job in first_wave else PATIENCE_SECONDS
                await self._patiently(lambda: self._go_on(job, body, events), job, patience)
        except OverloadedError:
            events.put_nowait((job, overloaded()))
        except EngineError:
            events.put_nowait((job, unavailable()))
        except Exception as error:
            events.put_nowait((job, error))

    async def _patiently(self, work: Callable[[], Awaitable[None]], job: Job, seconds: float) -> None:
        """Do the work; a text that follows others of its request waits for a place, as its request has begun."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return await work()
            except OverloadedError:
                if time.monotonic() >= deadline or job.num_generated:
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def _go_on(self, job: Job, body: CompletionRequest, events: Events) -> None:
        request, offset = job.request, 0
        if body.echo:
            events.put_nowait((job, await self._echo(job, with_logprobs=body.logprobs is not None)))
            offset = len(job.prompt.text)
        if request.max_tokens == 0:
            events.put_nowait((job, Piece(finish_reason="length", is_generated=True)))
            return
        text = TextStream(
            self.codec,
            [*body.stop_sequences, *job.prompt.stop],
            offset,
            after=request.token_ids[request.num_hidden :],
            min_tokens=request.sampling.min_tokens,
        )
        stream = self.backend.generate(request)
        with TextClock(self.metrics, self.card.members, len(request.token_ids)) as clock:
            async with aclosing(stream):
                async for tokens in stream:
                    clock.tick(tokens)
                    job.num_generated += len(tokens)
                    piece = text.push(tokens)
                    events.put_nowait((job, piece))
                    if piece.finish_reason:
                        return

    async def _echo(self, job: Job, *, with_logprobs: bool) -> Piece:
        request = job.request
        if not with_logprobs:
            return Piece(job.prompt.text)
        scored = await job.scores.get(lambda: self.backend.score(request.token_ids, request.sampling, request.depth))
        tokens = [*([] if request.num_hidden else [Token(request.token_ids[0])]), *scored]
        if not tokens:
            return Piece(job.prompt.text)
        tokens[-1] = replace(tokens[-1], finish_reason="length")  # so that all of them are placed
        return Piece(job.prompt.text, TextStream(self.codec).push(tokens).tokens)

    def _choice(self, job: Job, piece: Piece, body: CompletionRequest) -> Choice:
        tokens = [token for token, _ in piece.tokens]
        return Choice(
            index=job.index,
            text=piece.text,
            finish_reason=piece.finish_reason,  # type: ignore[arg-type]
            logprobs=None if body.logprobs is None else self._logprobs(piece),
            growtx=self._attribution(tokens) if body.extension.attribution else None,
        )

    def _logprobs(self, piece: Piece) -> Logprobs:
        tokens = [token for token, _ in piece.tokens]
        return Logprobs(
            tokens=[self.codec.name(token.id) for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[
                None if token.logprob is None else {self.codec.name(top): logprob for top, logprob in token.top}
                for token in tokens
            ],
            text_offset=[offset for _, offset in piece.tokens],
        )

    def _attribution(self, tokens: list[Token]) -> Attribution:
        alone = (1.0,)
        return Attribution(
            tokens=[self.codec.name(token.id) for token in tokens],
            weights=[list(token.weights or alone) for token in tokens],
            shares=[list(token.attribution or alone) for token in tokens],
        )


def _check_weights(weights: list[float], num_members: int, rule: str) -> None:
    problem = None
    if not num_members:
        problem = "growtx.weights are for ensembles, and this is a single model"
    elif len(weights) != num_members:
        problem = f"growtx.weights must have {num_members} numbers, one per member"
    elif not any(weights):
        problem = "growtx.weights must not all be zero"
    elif rule in RULES_OF_PROBABILITIES and min(weights) < 0:
        problem = f"with the rule {rule}, growtx.weights are probabilities and must not be negative"
    if problem:
        raise ApiError(400, problem, param="growtx.weights")


def _usage(jobs: list[Job], num_texts: int) -> Usage:
    num_prompt = sum(len(job.request.token_ids) - job.request.num_hidden for job in jobs[::num_texts])
    num_generated = sum(job.num_generated for job in jobs)
    return Usage(prompt_tokens=num_prompt, completion_tokens=num_generated, total_tokens=num_prompt + num_generated)


def _joined(parts: list[Choice]) -> Choice:
    """One choice from its parts."""
    whole = parts[0].model_copy(update={"text": "".join(part.text for part in parts)})
    whole.finish_reason = parts[-1].finish_reason
    for part in parts[1:]:
        for name in ("logprobs", "growtx"):
            lists, more = getattr(whole, name), getattr(part, name)
            for key in type(lists).model_fields if lists is not None else ():
                getattr(lists, key).extend(getattr(more, key))
    return whole
