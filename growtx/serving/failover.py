"""Engine replicas behind a Ray Serve handle: a text whose replica dies continues on another one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from growtx.sampling import Sampling
from growtx.serving.metrics import FailoverMetrics, read_cluster_metrics
from growtx.serving.requests import EngineError, Generation, ModelInfo, OverloadedError, Token

REPLICA_LOST = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError, EngineError)
_MAX_ATTEMPTS = 12
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Replicas:
    """The backend that the ingress uses on a cluster.

    Args:
        handle: of the engine deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._metrics = FailoverMetrics()

    async def card(self) -> ModelInfo:
        card: ModelInfo = await self._retried(self._handle.card.remote)
        return card

    async def score(self, token_ids: tuple[int, ...], sampling: Sampling, depth: int | None) -> list[Token]:
        scored: list[Token] = await self._retried(lambda: self._handle.score.remote(token_ids, sampling, depth))
        return scored

    async def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        """New tokens as they come, from one replica or several.

        Noise is keyed by seed and position, so another replica that reads the prompt and what was generated so far
        continues with exactly the tokens that the lost one would have chosen.

        Raises:
            OverloadedError: no replica has room, before the first token.
            EngineError: no replica could continue.
        """
        generated: list[int] = []
        for attempt in range(_MAX_ATTEMPTS):
            stream = self._streaming.generate.remote(request.after(generated))
            try:
                async for tokens in stream:
                    generated += [token.id for token in tokens]
                    yield tokens
                    if tokens[-1].finish_reason is not None:
                        return
            except (BackPressureError, OverloadedError) as error:
                if not generated:
                    raise OverloadedError(str(error)) from error
            except REPLICA_LOST as error:
                self._metrics.failovers.inc()
                logger.warning("a replica was lost after %d tokens (%s)", len(generated), type(error).__name__)
            finally:
                _release(stream)
            await asyncio.sleep(_pause(attempt))
        raise EngineError(f"no replica could continue after {_MAX_ATTEMPTS} attempts")

    async def metrics(self) -> str:
        return await asyncio.to_thread(read_cluster_metrics)

    async def _retried(self, call: Any) -> Any:
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return await call()
            except BackPressureError as error:
                raise OverloadedError(str(error)) from error
            except REPLICA_LOST:
                await asyncio.sleep(_pause(attempt))
        raise EngineError(f"no replica answered after {_MAX_ATTEMPTS} attempts")


def _release(stream: Any) -> None:
    """Free the place of a stream that nobody reads any more; nothing happens to one that has ended.

    A call that no replica took raises its reason once more when it is cancelled.
    """
    with suppress(BackPressureError, *REPLICA_LOST):
        stream.cancel()


def _pause(attempt: int) -> float:
    """No pause before the first retry: another replica is usually available."""
    return 0.0 if attempt == 0 else min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
