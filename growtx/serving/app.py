"""Ray Serve application: HTTP front ends in front of engine replicas.

serve run serve.app:build model=runs/mine num_replicas=2
serve run serve.app:build 'model=[runs/english, runs/russian]' rule=mixture
serve deploy serve/config.yaml
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from growtx.compat.ray import drain_at_shutdown
from growtx.growth.results import find_result
from growtx.sampling import Sampling
from growtx.serving.chat_template import TRANSCRIPT
from growtx.serving.requests import Generation, ModelInfo, Token
from growtx.serving.settings import ServeSettings, parse_settings

METRICS_PERIOD_SECONDS = 1
DRAIN_SLACK_SECONDS = 10  # replicas are told after the application, and looked at every few seconds
CLIENTS_PER_INGRESS = 4096  # including waiting ones; the engines' queues answer 429 long before


class EngineReplica:
    """A process with the model in it."""

    def __init__(self, settings: ServeSettings) -> None:
        import torch

        from growtx.serving.engine import Engines
        from growtx.serving.loading import load_depths

        torch.set_num_threads(max(1, round(settings.cpus_per_replica)))
        models, tokenizer = load_depths(settings)
        self._engines = Engines(
            models,
            tokenizer,
            max_batch_size=settings.max_batch_size,
            max_queue=settings.max_batch_size,  # Ray Serve queues before us: this is slack for those that are leaving
            max_batch_tokens=settings.max_batch_tokens,
            kv_cache_gib=None if settings.gpus_per_replica else settings.kv_cache_gib,
        )
        self._reporting = asyncio.get_running_loop().create_task(self._report())

    async def _report(self) -> None:
        from growtx.compat.ray import replica_name
        from growtx.serving.metrics import EngineMetrics

        metrics, replica = EngineMetrics(), replica_name()
        while True:
            metrics.set(replica, self._engines.batch_size)
            await asyncio.sleep(METRICS_PERIOD_SECONDS)

    def check_health(self) -> None:
        """Called by Ray Serve; an error makes it start another replica."""
        self._engines.check_health()

    async def card(self) -> ModelInfo:
        return await self._engines.card()

    async def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        stream = self._engines.generate(request)
        try:
            async for tokens in stream:
                yield tokens
        finally:
            await stream.aclose()

    async def score(self, token_ids: tuple[int, ...], sampling: Sampling, depth: int | None) -> list[Token]:
        return await self._engines.score(token_ids, sampling, depth)

    def status(self) -> dict[str, int]:
        """Process id and texts that run or wait here."""
        return {"pid": os.getpid(), "num_running": self._engines.num_running}


@serve.ingress()
class Ingress:
    """HTTP front end; holds no state that a restart would lose."""

    def __init__(self, engines: DeploymentHandle, settings: ServeSettings) -> None:
        self._engines = engines
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        from growtx.serving.api import create_app
        from growtx.serving.failover import Replicas

        return create_app(Replicas(self._engines), self._settings)


def absolute(settings: ServeSettings) -> ServeSettings:
    """Resolve the paths of models, and read the chat template here: replicas run in another directory."""
    paths = [find_result(path).address for path in settings.models]
    model = paths[0] if isinstance(settings.model, str) else paths
    template = settings.chat_template_text()
    return settings.model_copy(
        update={"model": model, "chat_template": "transcript" if template == TRANSCRIPT else template}
    )


def build(arguments: dict[str, Any]) -> Application:
    """The application of `serve run` and `serve deploy`.

    In the process that ends it later (that of `serve run`), running answers then end first. `serve deploy` and config
    files build it in one of Ray's workers, where nothing is to be done: a deletion lets answers end anyway.

    Args:
        arguments: fields of `ServeSettings`, as strings or values.

    Raises:
        ConfigError: a setting that is wrong, before anything starts.
    """
    settings = absolute(parse_settings(arguments))
    settings.api_keys()
    if threading.current_thread() is threading.main_thread() and not ray.is_initialized():
        drain_at_shutdown(settings.drain_seconds + DRAIN_SLACK_SECONDS, partial(print, flush=True))
    replicas: dict[str, Any] = {"num_replicas": settings.num_replicas}
    if settings.max_replicas is not None:
        replicas = {
            "autoscaling_config": {
                "min_replicas": settings.num_replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": max(1, settings.max_batch_size * 3 // 4),
                "upscale_delay_s": settings.upscale_delay_seconds,
                "downscale_delay_s": settings.downscale_delay_seconds,
            }
        }
    threads = str(max(1, round(settings.cpus_per_replica)))
    engine = serve.deployment(
        EngineReplica,
        name="Engine",
        **replicas,
        max_ongoing_requests=settings.max_batch_size,
        max_queued_requests=settings.max_queue,
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
        },
    )
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        num_replicas=settings.num_ingress_replicas,
        max_ongoing_requests=CLIENTS_PER_INGRESS,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={"num_cpus": 0.1},
    )
    return ingress.bind(engine.bind(settings), settings)
