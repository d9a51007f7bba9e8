"""Small models for the tests of growtx.models; one thread, no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections.abc import Callable
from typing import Any

import pytest
import torch

from growtx.models import GrowtxConfig, GrowtxForCausalLM

VOCAB_SIZE = 97


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small_config(**changes: Any) -> GrowtxConfig:
    """Weights large enough that greedy choices are clear-cut and biases and norms are not trivial."""
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128}
    identity = {"substrate_fingerprint": "substrate-a", "tokenizer_fingerprint": "tokenizer-a"}
    return GrowtxConfig(**{**shape, **tokens, **identity, "initializer_range": 0.2, **changes})


def small_model(seed: int = 0, **changes: Any) -> GrowtxForCausalLM:
    torch.manual_seed(seed)
    model = GrowtxForCausalLM(small_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.eos_token_id = None  # so that every generation has its full length
    return model


@pytest.fixture
def make_model() -> Callable[..., GrowtxForCausalLM]:
    return small_model


@pytest.fixture
def make_config() -> Callable[..., GrowtxConfig]:
    return small_config


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (3, 12), generator=torch.Generator().manual_seed(1))
