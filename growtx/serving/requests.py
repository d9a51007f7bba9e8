"""What the ingress asks of an engine and what it gets back; plain data that travels between processes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


class EngineError(RuntimeError):
    """The engine could not continue a request through no fault of the client; another replica may."""


class OverloadedError(EngineError):
    """The engine runs as many requests as it may; a later attempt can succeed."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    `seed` and the position in the text alone decide the noise, so a choice does not depend on which replica makes
    it, beside which requests, or how much of the text was there before.
    """

    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    num_logprobs: int | None = None
    rule: str | None = None
    weights: tuple[float, ...] | None = None
    attribution: bool = False


@dataclass(frozen=True)
class Generation:
    """A text to continue."""

    token_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    depth: int | None = None

    def after(self, generated: list[int]) -> Generation:
        """What is left to do when `generated` is known already."""
        return Generation((*self.token_ids, *generated), self.max_tokens - len(generated), self.sampling, self.depth)


@dataclass(frozen=True, slots=True)
class Token:
    """A chosen (or, of a prompt, scored) token.

    `logprob` and `top` are natural logarithms under the combined distribution before temperature and top_p, and
    present when asked for. `weights` are the rule's weights of the members at this position; `attribution` each
    member's share in the probability of this token; both are absent for a single model.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    weights: tuple[float, ...] | None = None
    attribution: tuple[float, ...] | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What an ingress needs to know of the model that the engines serve.

    `start_token_id` stands before every document in training, and so before every prompt that is text. `members`
    and `rules` are empty for a single model; the first rule is the default.
    """

    tokenizer_json: str
    vocab_size: int
    context_length: int
    depths: tuple[int, ...]
    members: tuple[str, ...]
    rules: tuple[str, ...]
    start_token_id: int


# The engines as the ingress sees them: in its own process (`Engines`) or behind Ray (`failover.Replicas`).


class Backend(Protocol):
    """Where tokens come from."""

    async def card(self) -> ModelInfo:
        """What is served."""

    def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        """New tokens as they come; see `Engine.generate`."""

    async def score(self, token_ids: tuple[int, ...], sampling: Sampling, depth: int | None) -> list[Token]:
        """Tokens from the second on with their probabilities."""

    async def metrics(self) -> str:
        """Metrics in Prometheus' text format."""
