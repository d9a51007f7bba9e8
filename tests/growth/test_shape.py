"""The model block of a configuration and the architecture that follows from it."""

from __future__ import annotations

import pytest

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.growth.plan import ModelConfig


@pytest.mark.parametrize(("width", "heads"), [(128, 3), (12, 4), (10, 10)])
def test_heads_that_do_not_split_the_width_into_even_parts_are_refused(width: int, heads: int) -> None:
    with pytest.raises(ConfigError, match=f"num_attention_heads={heads} does not divide hidden_size={width}"):
        build_config(ModelConfig, {"hidden_size": width, "num_attention_heads": heads})


def test_the_architecture_of_a_depth_knows_the_final_depth() -> None:
    shape = ModelConfig(hidden_size=32, num_attention_heads=4, context_length=64, lm_head_bias=False)
    config = shape.architecture(
        vocab_size=100, num_blocks=2, final_num_blocks=8, substrate_width=8, expansion="interleave"
    )
    assert (config.hidden_size, config.num_hidden_layers, config.num_layers_for_init) == (32, 2, 8)
    assert (config.substrate_width, config.substrate_expansion, config.max_position_embeddings) == (8, "interleave", 64)
    assert config.lm_head_bias is False and config.intermediate_size == 128
    assert config.residual_initializer_range == pytest.approx(0.02 / 4)
