from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.growth import growing_flops
from growtx.models import GrowtxConfig, GrowtxForCausalLM, num_params
from growtx.models.counting import block_forward_flops, forward_flops, head_forward_flops, monolithic_flops


def published(num_blocks: int, *, hidden_size: int = 1024, vocab_size: int = 65_536, bits: int | None = None) -> Any:
    expansion = "none" if bits is None else "interleave"
    return GrowtxConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_blocks,
        vocab_size=vocab_size,
        substrate_width=bits,
        substrate_expansion=expansion,
    )


def millions(count: int) -> str:
    return f"{count / 1e6:.1f}M"


def billions(count: int) -> str:
    return f"{count / 1e9:.1f}B"


def test_study_models_have_the_published_counts() -> None:
    assert millions(num_params(published(9)).total) == "247.6M"
    assert millions(num_params(published(9, bits=16)).total) == "181.6M"
    assert millions(num_params(published(16, bits=16)).total) == "269.7M"


def test_abs_bvv_models_have_the_published_counts() -> None:
    counts = [num_params(published(blocks, hidden_size=4096, vocab_size=131_072)) for blocks in range(1, 7)]
    assert [billions(count.total) for count in counts] == ["1.3B", "1.5B", "1.7B", "1.9B", "2.1B", "2.3B"]


def test_best_bvv_specialists_have_the_published_counts() -> None:
    specialist = num_params(published(16, vocab_size=131_072)).total
    assert billions(specialist) == "0.5B"
    assert billions(2 * specialist) == "0.9B"  # published with the substrate stored twice


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lm_head_bias": False},
        {"substrate_width": 8, "substrate_expansion": "tile"},
        {"intermediate_size": 48, "num_hidden_layers": 1},
        {"hidden_size": 1024, "num_attention_heads": 32, "vocab_size": 65_536, "num_hidden_layers": 9},
    ],
)
def test_counts_are_those_of_the_model(make_config: Callable[..., GrowtxConfig], changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    counts = num_params(config)
    with torch.device("meta"):
        model = GrowtxForCausalLM(config)

    def size(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert counts.embedding == size(model.model.embed_tokens)
    assert counts.per_block == size(model.model.layers[0])
    assert counts.final_norm == size(model.model.norm)
    assert counts.head == size(model.lm_head)
    assert counts.total == size(model)


def test_flops_follow_the_formulas() -> None:
    config = published(12, hidden_size=256, vocab_size=8192)
    block, head = 12 * 256**2, 256 * 8192
    assert monolithic_flops(config, 1).weights == 6 * (12 * block + head)
    assert growing_flops(config, 1, num_new_blocks=1).weights == 2 * 11 * block + 6 * (block + head)
    assert growing_flops(config, 1, num_new_blocks=1, prefix_cached=True).weights == 6 * (block + head)
    ratio = growing_flops(config, 1, num_new_blocks=1).weights / monolithic_flops(config, 1).weights
    assert ratio == pytest.approx(0.50, abs=0.005)


def test_cached_growth_costs_the_same_at_any_depth() -> None:
    costs = {growing_flops(published(depth), 1024, num_new_blocks=1, prefix_cached=True).total for depth in (1, 5, 16)}
    assert len(costs) == 1


def test_attention_flops_count_causal_products_exactly() -> None:
    config = published(2, hidden_size=64)
    context = 10
    by_hand = sum(2 * 2 * 64 * (position + 1) for position in range(context)) / context
    assert block_forward_flops(config, context).attention == by_hand
    assert forward_flops(config, context).attention == 2 * by_hand
    assert head_forward_flops(config).attention == 0
