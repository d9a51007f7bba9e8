"""CompleteP: initialisation, learning rates and the rest scaled so that they hold for another width and depth.

Dey et al., arXiv:2505.01618, with alpha = 1. There, every branch of a block is multiplied by 1 / m_L and the logits by
1 / m_D, where m_L and m_D are how much deeper and wider the model is than a base. Under Adam, a weight behind a factor
is the same as a weight that has swallowed it, once its initialisation, learning rate, weight decay and epsilon swallow
it too. So it is done here, and the model itself has no factor: it exports, merges and serves as any other.

At the base shape everything is what it is without. The base only fixes what a rate means: rates transfer between any
two shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from growtx.growth.plan import Parametrization
from growtx.models.configuration import GrowtxConfig

BASE_NUM_BLOCKS = 2  # as in the paper
BASE_HIDDEN_SIZE = 256


@dataclass(frozen=True)
class Scales:
    """What multiplies the standard values of one parameter."""

    init: float = 1.0
    learning_rate: float = 1.0
    weight_decay: float = 1.0
    epsilon: float = 1.0


def scales_of(name: str, config: GrowtxConfig, parametrization: Parametrization) -> Scales:
    """The scales of a parameter.

    Args:
        name: in the model, in a block, or in a peft model.
        config: of any depth; what counts is the depth that the plan ends at (`num_layers_for_init`).
    """
    if parametrization == "standard":
        return Scales()
    wider = config.hidden_size / BASE_HIDDEN_SIZE
    deeper = (config.num_layers_for_init or config.num_hidden_layers) / BASE_NUM_BLOCKS
    both = wider * deeper
    table = {
        "lm_head.weight": Scales(1 / wider, 1 / wider, weight_decay=wider),
        "lm_head.bias": Scales(epsilon=1 / wider),
        "embed_tokens.weight": Scales(epsilon=1 / wider),
        "norm": Scales(epsilon=1 / wider),
        # The standard initialisation of what writes into the stream has a factor 1 / sqrt(2 L) already.
        "o_proj.weight": Scales(both**-0.5, 1 / both, weight_decay=both, epsilon=1 / wider),
        "down_proj.weight": Scales(both**-0.5, 1 / both, weight_decay=both, epsilon=1 / wider),
        "down_proj.bias": Scales(learning_rate=1 / deeper, epsilon=1 / wider),
        "up_proj.bias": Scales(epsilon=1 / both),
        "layernorm": Scales(epsilon=1 / both),
    }
    into_block = Scales(wider**-0.5, 1 / wider, weight_decay=wider, epsilon=1 / both)
    table |= {f"{kind}_proj.weight": into_block for kind in ("q", "k", "v", "up")}
    *_, module, kind = name.split(".")
    key = next((norm for norm in ("layernorm", "norm") if module.endswith(norm)), f"{module}.{kind}")
    return table.get(key, Scales())  # not adapters and the scalars of reinjection, which the paper does not know
