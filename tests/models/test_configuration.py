from __future__ import annotations

from collections.abc import Callable

import pytest

from growtx.exceptions import ConfigError
from growtx.models import GrowtxConfig


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_attention_heads": 5}, "does not split into 5 heads"),
        ({"num_attention_heads": 32}, "heads of even width"),
        ({"tie_word_embeddings": True}, "substrate is frozen"),
        ({"substrate_width": 8}, "does not fit a substrate of width 8"),
        ({"substrate_width": 7, "substrate_expansion": "tile"}, "7 does not divide hidden_size 32"),
        ({"substrate_expansion": "tile"}, "does not fit a substrate of width 32"),
        ({"substrate_expansion": "repeat"}, "unknown"),
        ({"loss_kernel": "fast"}, "Use one of chunked, plain, liger"),
    ],
)
def test_impossible_shapes_are_refused_in_a_sentence(
    make_config: Callable[..., GrowtxConfig], changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_config(**changes)


def test_derived_widths_are_resolved_and_survive_serialisation(make_config: Callable[..., GrowtxConfig]) -> None:
    config = make_config(substrate_width=16, substrate_expansion="interleave")
    assert (config.intermediate_size, config.head_dim, config.embedding_width) == (128, 8, 16)
    assert GrowtxConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
