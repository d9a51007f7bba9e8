"""Models around tensors that exist already: nothing is initialised, nothing copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from growtx.models.causal_lm import GrowtxPreTrainedModel

Model = TypeVar("Model", bound=GrowtxPreTrainedModel)


def build_around(
    model_class: Callable[[Any], Model],
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    *,
    like: GrowtxPreTrainedModel,
) -> Model:
    """A model whose parameters are the given tensors themselves (parameters stay the same objects).

    Mode, attention implementation and generation defaults are those of `like`. The tensors of an ensemble's rule
    are not among `tensors`: set the rule afterwards.
    """
    with torch.device("meta"):
        model = model_class(config)
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    assert not unexpected and all(name.startswith("rule.") for name in missing), (missing, unexpected)
    model.generation_config = like.generation_config
    model.set_attn_implementation(like.config._attn_implementation)
    model.train(like.training)
    return model
