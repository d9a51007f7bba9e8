"""From a completion request to texts, and from texts to the answer or the events of a stream."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from growtx.serving.errors import ApiError, overloaded, unavailable
from growtx.serving.metrics import IngressMetrics, TextClock
from growtx.serving.protocol import Attribution, Choice, Completion, CompletionRequest, Logprobs, Usage
from growtx.serving.requests import Backend, EngineError, Generation, ModelInfo, OverloadedError, Sampling, Token
from growtx.serving.settings import RequestLimits
from growtx.serving.text import Codec, Piece, TextStream

DEFAULT_MAX_TOKENS = 16
RULES_OF_PROBABILITIES = ("mixture", "posterior", "cluster")


@dataclass
class Job:
    """One text of a request."""

    index: int
    request: Generation
    prompt_text: str  # what `echo` returns
    num_hidden: int  # tokens before the prompt that no client sees
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

    async def run(self, body: CompletionRequest) -> AsyncGenerator[Completion, None]:
        """Parts of the answer as they come; the last one has the usage and no choices.

        The first part comes when every text of the request has its first token, so whoever gets it can answer 200.

        Raises:
            ApiError: the request is wrong, or there is no room; after the first part only if engines fail for good.
        """
        jobs = self._jobs(body)
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        events: Events = asyncio.Queue()
        tasks = [asyncio.create_task(self._generate(job, body, events)) for job in jobs]
        try:
            held: list[tuple[Job, Piece]] | None = []
            waiting, running = len(jobs), len(jobs)
            while running:
                job, item = await events.get()
                if isinstance(item, Exception):
                    raise item
                running -= item.finish_reason is not None
                if held is None:
                    yield Completion(**head, choices=[self._choice(job, item, body)])
                    continue
                held.append((job, item))
                waiting = len(jobs) - len({other.index for other, piece in held if piece.is_generated})
                if not waiting:
                    for other, piece in held:
                        yield Completion(**head, choices=[self._choice(other, piece, body)])
                    held = None
            yield Completion(**head, choices=[], usage=_usage(jobs, body.n or 1))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, body: CompletionRequest) -> Completion:
        """The whole answer at once."""
        texts: dict[int, list[Choice]] = {}
        async with aclosing(self.run(body)) as parts:
            async for part in parts:
                for choice in part.choices:
                    texts.setdefault(choice.index, []).append(choice)
        part.choices = [_joined(texts[index]) for index in sorted(texts)]
        return part

    def _jobs(self, body: CompletionRequest) -> list[Job]:
        self._check(body)
        num_texts = body.n or 1
        seed = secrets.randbits(48) if body.seed is None else body.seed
        extension = body.growtx
        jobs: list[Job] = []
        for prompt in body.prompts:
            token_ids, text, num_hidden = self._read_prompt(prompt)
            max_tokens = self._room(body, len(token_ids))
            for _ in range(num_texts):
                sampling = Sampling(
                    seed=_seed_of(seed, len(jobs)),
                    temperature=1.0 if body.temperature is None else body.temperature,
                    top_p=1.0 if body.top_p is None else body.top_p,
                    num_logprobs=body.logprobs,
                    rule=extension.rule if self.card.rules else None,
                    weights=None if extension.weights is None else tuple(extension.weights),
                    attribution=extension.attribution,
                )
                request = Generation(tuple(token_ids), max_tokens, sampling, extension.depth)
                jobs.append(Job(len(jobs), request, text, num_hidden))
        return jobs

    def _check(self, body: CompletionRequest) -> None:
        """Check what depends on the model and the settings; the rest is in the schema."""
        if body.model != self.name:
            raise ApiError(404, f"The model is {self.name}", param="model", code="model_not_found")
        if len(body.prompts) * (body.n or 1) > self.limits.max_choices:
            raise ApiError(400, f"prompts times n may be at most {self.limits.max_choices}", param="n")
        if len(body.stop_sequences) > self.limits.max_stop_sequences:
            raise ApiError(400, f"stop may have at most {self.limits.max_stop_sequences} sequences", param="stop")
        extension, card = body.growtx, self.card
        if extension.rule is not None and extension.rule not in (card.rules or ("mean",)):
            raise ApiError(400, f"growtx.rule must be one of {', '.join(card.rules or ('mean',))}", param="growtx.rule")
        if extension.depth is not None and extension.depth not in card.depths:
            known = ", ".join(map(str, card.depths)) or "none, leave it out"
            raise ApiError(400, f"growtx.depth must be one of: {known}", param="growtx.depth")
        if extension.weights is not None:
            _check_weights(extension.weights, len(card.members), extension.rule or card.rules[0] if card.rules else "")

    def _read_prompt(self, prompt: str | list[int]) -> tuple[list[int], str, int]:
        if isinstance(prompt, str):
            token_ids = self.codec.encode(prompt)
            if token_ids is None:
                raise self._too_long("the prompt alone")
            return token_ids, prompt, 1
        if max(prompt) >= self.card.vocab_size:
            raise ApiError(400, f"Token ids must be below {self.card.vocab_size}", param="prompt")
        return prompt, self.codec.decode(prompt), 0

    def _room(self, body: CompletionRequest, prompt_length: int) -> int:
        room = self.card.context_length - prompt_length
        wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if wanted > room or room < 0:
            raise self._too_long(f"a prompt of {prompt_length} and max_tokens={wanted}")
        return wanted

    def _too_long(self, what: str) -> ApiError:
        message = f"The context has {self.card.context_length} tokens; {what} is too long"
        return ApiError(400, message, param="prompt", code="context_length_exceeded")

    async def _generate(self, job: Job, body: CompletionRequest, events: Events) -> None:
        """Put the pieces of one text into the queue of events, errors included."""
        try:
            offset = 0
            if body.echo:
                events.put_nowait((job, await self._echo(job, with_logprobs=body.logprobs is not None)))
                offset = len(job.prompt_text)
            if job.request.max_tokens == 0:
                events.put_nowait((job, Piece(finish_reason="length", is_generated=True)))
                return
            await self._go_on(job, TextStream(self.codec, body.stop_sequences, offset), events)
        except OverloadedError:
            events.put_nowait((job, overloaded()))
        except EngineError:
            events.put_nowait((job, unavailable()))
        except Exception as error:
            events.put_nowait((job, error))

    async def _go_on(self, job: Job, text: TextStream, events: Events) -> None:
        stream = self.backend.generate(job.request)
        with TextClock(self.metrics, self.card.members, len(job.request.token_ids)) as clock:
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
            return Piece(job.prompt_text)
        scored = await self.backend.score(request.token_ids, request.sampling, request.depth)
        tokens = [*([] if job.num_hidden else [Token(request.token_ids[0])]), *scored]
        placed, offset = [], 0
        for token in tokens:
            placed.append((token, offset))
            offset += len(self.codec.decode([token.id]))
        return Piece(job.prompt_text, placed)

    def _choice(self, job: Job, piece: Piece, body: CompletionRequest) -> Choice:
        tokens = [token for token, _ in piece.tokens]
        return Choice(
            index=job.index,
            text=piece.text,
            finish_reason=piece.finish_reason,  # type: ignore[arg-type]
            logprobs=None if body.logprobs is None else self._logprobs(piece),
            growtx=self._attribution(tokens) if body.growtx.attribution else None,
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


def _seed_of(seed: int, index: int) -> int:
    """The first text has the request's own seed, so that it is the same for any n."""
    return (seed + index + 2**63) % 2**64 - 2**63


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
    num_prompt = sum(len(job.request.token_ids) - job.num_hidden for job in jobs[::num_texts])
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
