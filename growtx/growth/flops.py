"""What a stage computes for one token of a training step, counted product by product.

`models/counting.py` has the round formulas of a whole block or model; this is what autograd really does in a stage:
weights that are frozen get no gradient, inputs below which nothing trains get none either, and adapters are cheap
but send gradients through every block. D hidden size, r rank.
"""

from __future__ import annotations

from growtx.growth.lora import num_adapter_parameters
from growtx.growth.plan import Stage
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import TokenFlops, block_forward_flops, head_forward_flops

_READ_THE_INPUT = ("q_proj", "k_proj", "v_proj")


def num_blocks_with_gradients(stage: Stage) -> int:
    """Newest blocks that gradients pass through: all of them where adapters or the substrate train."""
    return stage.num_blocks if stage.lora or stage.train_substrate else stage.num_active


def stage_flops(
    config: GrowtxConfig, stage: Stage, *, prefix_cached: bool = False, activation_checkpointing: bool = False
) -> TokenFlops:
    """FLOPs per token of a training step; `config` gives the shape, its depth is not used.

    Args:
        prefix_cached: the states that leave the frozen prefix are read and not computed.
        activation_checkpointing: blocks with gradients run forward twice.
    """
    block = block_forward_flops(config, config.max_position_embeddings)
    through = num_blocks_with_gradients(stage)
    forward = block * (through if prefix_cached else stage.num_blocks)
    again = block * (through if activation_checkpointing else 0)
    backward = TokenFlops(block.weights * (through + stage.num_active), 2 * block.attention * through)
    adapters = _adapters(config, stage, activation_checkpointing=activation_checkpointing)
    return forward + again + backward + adapters + _head(config, stage, through) + _unneeded(config, stage, through)


def _head(config: GrowtxConfig, stage: Stage, through: int) -> TokenFlops:
    """Forward, the gradient of its input if anything below trains, that of its weights if it trains itself."""
    return head_forward_flops(config) * (1 + bool(through) + stage.head)


def _adapters(config: GrowtxConfig, stage: Stage, *, activation_checkpointing: bool) -> TokenFlops:
    if stage.lora is None:
        return TokenFlops(0.0, 0.0)
    per_block = num_adapter_parameters(stage.lora, config.hidden_size, config.mlp_width)
    passes = 4 if activation_checkpointing else 3
    return TokenFlops(2.0 * passes * per_block * stage.num_frozen, 0.0)


def _unneeded(config: GrowtxConfig, stage: Stage, through: int) -> TokenFlops:
    """The lowest block with gradients needs none for its input, unless the substrate below it trains."""
    if not through or stage.train_substrate:
        return TokenFlops(0.0, 0.0)
    products = len(_READ_THE_INPUT) * config.hidden_size**2
    if stage.lora is not None:
        adapted = sum(target in _READ_THE_INPUT for target in stage.lora.targets)
        products += adapted * config.hidden_size * stage.lora.rank
    return TokenFlops(-2.0 * products, 0.0)
