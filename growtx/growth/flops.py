"""What a stage computes for one token of a training step, counted product by product.

`models/counting.py` has the round formulas of a whole block or model; this is what autograd really does in a stage:
weights that are frozen get no gradient, a frozen prefix only runs forward, and adapters are cheap but send gradients
through every block.
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
    backward = TokenFlops(block.weights * (through + stage.num_active), 2 * block.attention * through)
    head = head_forward_flops(config) * (2 + stage.head)  # its input has a gradient: something below always trains
    total = forward + backward + head + _adapters(config, stage, 4 if activation_checkpointing else 3)
    return total + _again(config, block) * through if activation_checkpointing else total


def _again(config: GrowtxConfig, block: TokenFlops) -> TokenFlops:
    """A block's second forward pass, which ends before the last product: the backward pass needs nothing of it."""
    return TokenFlops(block.weights - 2.0 * config.hidden_size * config.mlp_width, block.attention)


def _adapters(config: GrowtxConfig, stage: Stage, num_passes: int) -> TokenFlops:
    """Adapters on the frozen blocks. Those that read the lowest one's input send no gradient further down."""
    if stage.lora is None:
        return TokenFlops(0.0, 0.0)
    per_block = num_adapter_parameters(stage.lora, config.hidden_size, config.mlp_width)
    products = num_passes * per_block * stage.num_frozen
    if not stage.train_substrate:
        adapted = sum(target in _READ_THE_INPUT for target in stage.lora.targets)
        products -= len(_READ_THE_INPUT) * config.hidden_size**2 + adapted * config.hidden_size * stage.lora.rank
    return TokenFlops(2.0 * products, 0.0)
