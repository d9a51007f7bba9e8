from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from growtx.models import GrowtxConfig, GrowtxForCausalLM
from growtx.models.causal_lm import SubstrateEmbedding, apply_rotary, initialize_block, rotary_angles


@pytest.mark.parametrize(("expansion", "expected"), [("interleave", [1, 1, 2, 2]), ("tile", [1, 2, 1, 2])])
def test_substrate_rows_are_expanded_to_the_width_of_the_model(
    make_config: Callable[..., GrowtxConfig], expansion: str, expected: list[int]
) -> None:
    config = make_config(hidden_size=4, num_attention_heads=1, substrate_width=2, substrate_expansion=expansion)
    embedding = SubstrateEmbedding(config)
    with torch.no_grad():
        embedding.weight[5] = torch.tensor([1.0, 2.0])
    assert embedding(torch.tensor([[5]])).tolist() == [[[float(value) for value in expected]]]


def test_block_initialisation_is_a_function_of_the_generator(make_model: Callable[..., GrowtxForCausalLM]) -> None:
    model = make_model()
    first, second = model.model.layers[:2]
    for block in (first, second):
        initialize_block(block, model.config, torch.Generator().manual_seed(7))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name


def test_projections_into_the_residual_stream_start_smaller_by_the_target_depth() -> None:
    config = GrowtxConfig(
        vocab_size=10, hidden_size=256, num_hidden_layers=1, num_attention_heads=4, num_layers_for_init=8
    )
    block = GrowtxForCausalLM(config).model.layers[0]
    assert block.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for projection in (block.self_attn.o_proj, block.mlp.down_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.mlp.up_proj.bias.abs().max() == 0
    assert torch.equal(block.input_layernorm.weight, torch.ones(256))


def test_rotary_scores_depend_on_relative_position_only() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8).unbind(0)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        angles = [rotary_angles(torch.tensor([[p]]), 8, 1e4, torch.float32) for p in (query_position, key_position)]
        return (apply_rotary(query, angles[0]) * apply_rotary(key, angles[1])).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-5)
