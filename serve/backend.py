"""The engines as the ingress sees them: in its own process (`serve.engines`) or behind Ray (`serve.failover`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from serve.requests import Generation, ModelCard, Sampling, Token


class Backend(Protocol):
    """Where tokens come from."""

    async def card(self) -> ModelCard:
        """What is served."""

    def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        """New tokens as they come; see `Engine.generate`."""

    async def score(self, token_ids: tuple[int, ...], sampling: Sampling, depth: int | None) -> list[Token]:
        """Tokens from the second on with their probabilities."""

    async def metrics(self) -> str:
        """Metrics in Prometheus' text format."""
