"""What the front end makes of what Ray Serve's handles raise, without a Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from growtx.serving.failover import Replicas
from growtx.serving.requests import Generation, OverloadedError, Token
from tests.serving.conftest import collect


class Call:
    """A streaming call that yields tokens and then ends, or fails as it does at Ray Serve."""

    def __init__(self, request: Generation, num_tokens: int, error: Exception | None) -> None:
        self.request = request
        self.num_tokens = num_tokens
        self.error = error
        self.is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[list[Token]]:
        for _ in range(self.num_tokens):
            position = len(self.request.token_ids)
            is_last = self.request.max_tokens == 1
            self.request = self.request.after([position])
            yield [Token(position, finish_reason="length" if is_last else None)]
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.is_cancelled = True
        if isinstance(self.error, BackPressureError):
            raise self.error  # as a call does that no replica took


def replicas(*plan: tuple[int, Exception | None]) -> tuple[Replicas, list[Call]]:
    """A deployment whose calls go as planned, one after the other."""
    steps, calls = list(plan), list[Call]()

    def remote(request: Generation) -> Call:
        calls.append(Call(request, *steps.pop(0)))
        return calls[-1]

    handle = SimpleNamespace(generate=SimpleNamespace(remote=remote))
    return Replicas(SimpleNamespace(options=lambda **_: handle)), calls


def generate(backend: Replicas, max_tokens: int = 6) -> list[int]:
    async def scenario() -> Any:
        return await collect(backend.generate(Generation((0, 1), max_tokens)))

    return [token.id for token in asyncio.run(scenario())]


@pytest.mark.parametrize("errors_before", [0, 1])
def test_no_room_is_overload_and_nothing_else(errors_before: int) -> None:
    backend, _ = replicas(*[(0, RayActorError())] * errors_before, (0, BackPressureError(16, 16)))
    with pytest.raises(OverloadedError):
        generate(backend)


def test_a_text_goes_on_where_its_replica_died() -> None:
    backend, calls = replicas((2, RayActorError()), (0, RayActorError()), (4, None))
    assert generate(backend) == [2, 3, 4, 5, 6, 7]
    assert [call.is_cancelled for call in calls] == [True] * 3


def test_a_text_that_has_begun_waits_for_room() -> None:
    backend, _ = replicas((2, RayActorError()), (0, BackPressureError(16, 16)), (4, None))
    assert generate(backend) == [2, 3, 4, 5, 6, 7]
