"""Tiny models behind a real engine; one thread, no network, no Ray unless a test says so."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from growtx.data.tokenizer import TokenizerConfig, build_tokenizer, tokenizer_fingerprint
from growtx.models import GrowtxConfig, GrowtxForCausalLM
from growtx.models.ensemble import from_members
from growtx.serving.engine import Engine
from growtx.serving.requests import Generation, Token

TEXT = "The quick brown fox jumps over the lazy dog. Быстрая лиса прыгает. 敏捷的狐狸跳过懒狗。 " * 4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(TokenizerConfig(vocab_size=360), [TEXT])


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **changes: Any) -> GrowtxForCausalLM:
    """Weights large enough that the next token is neither certain nor uniform."""
    torch.manual_seed(seed)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    identity = {"substrate_fingerprint": "s", "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    tokens = {"eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 256}
    config = GrowtxConfig(**{**shape, **identity, **tokens, "initializer_range": 0.15, **changes})
    return GrowtxForCausalLM(config).eval()


def make_ensemble(
    tokenizer: PreTrainedTokenizerFast, rule: str = "mean", *, num_trunk_blocks: int = 0, **changes: Any
) -> PreTrainedModel:
    members = {name: make_model(tokenizer, seed, **changes) for seed, name in enumerate(("north", "south"))}
    for index in range(num_trunk_blocks):
        members["south"].model.layers[index] = members["north"].model.layers[index]
    members["south"].model.embed_tokens = members["north"].model.embed_tokens
    return from_members(members, rule=rule)


def _start(model: PreTrainedModel, **options: Any) -> Engine:
    engine = Engine({None: model}, **{"max_batch_size": 32, "kv_cache_gib": 0.05, **options})
    engine.start()
    return engine


@pytest.fixture(scope="session")
def engine(tokenizer: PreTrainedTokenizerFast) -> Iterator[Engine]:
    """Two members; its own rule is the one that remembers, so that any rule can be asked for."""
    engine = _start(make_ensemble(tokenizer, "posterior"))
    yield engine
    engine.stop()


@pytest.fixture
def start_engine() -> Iterator[Callable[..., Engine]]:
    engines = []

    def start(model: PreTrainedModel, **options: Any) -> Engine:
        engines.append(_start(model, **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.stop()


async def collect(stream: AsyncIterator[list[Token]]) -> list[Token]:
    return [token async for tokens in stream for token in tokens]


async def complete(engine: Engine, prompt: tuple[int, ...], max_tokens: int = 24, **sampling: Any) -> list[int]:
    from growtx.sampling import Sampling

    request = Generation(prompt, max_tokens, Sampling(**sampling))
    return [token.id for token in await collect(engine.generate(request))]
