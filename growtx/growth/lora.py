"""LoRA phases: low-rank adapters on frozen blocks (Hu et al., arXiv:2106.09685), by peft, kept as deltas.

An adapter blob belongs to one block and holds, for each adapted projection P, `P.lora_A` [r, in], `P.lora_B`
[out, r] and `P.scaling` []. Its effect is W + scaling * B A; the finalized block it refers to is never rewritten.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import nn

from growtx.growth.plan import ATTENTION_TARGETS, LoraConfig
from growtx.models.causal_lm import GrowtxForCausalLM

_PEFT_PREFIX = "base_model.model."  # of every name in a peft model, before the name in the model that it wraps
_LORA_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(lora_[AB])\.default\.weight$")


def add_adapters(model: GrowtxForCausalLM, lora: LoraConfig, num_blocks: int, *, seed: int) -> nn.Module:
    """Wrap the projections of the lowest `num_blocks` blocks with adapters, which alone then train.

    Returns:
        The peft model around `model`. The adapters' output is zero until they are trained.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    targets = "|".join(f"{_parent(target)}.{target}" for target in lora.targets)
    indices = "|".join(str(index) for index in range(num_blocks))
    config = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"model\.layers\.({indices})\.({targets})",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws A from the global random generator
        peft_model: nn.Module = get_peft_model(model, config)
    return peft_model


def _parent(target: str) -> str:
    return "self_attn" if target in ATTENTION_TARGETS else "mlp"


def num_adapter_parameters(lora: LoraConfig, hidden_size: int, intermediate_size: int) -> int:
    """Parameters of the adapters on one block: rank * (in + out) for every target (18 D r for all of them)."""
    attention = sum(target in ATTENTION_TARGETS for target in lora.targets)
    mlp = len(lora.targets) - attention
    return lora.rank * (attention * 2 * hidden_size + mlp * (hidden_size + intermediate_size))


def adapters_by_block(weights: Mapping[str, torch.Tensor], lora: LoraConfig) -> dict[int, dict[str, torch.Tensor]]:
    """Split a peft model's named weights into the adapter tensors of each block; other names are ignored."""
    blocks: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, weight in weights.items():
        match = _LORA_NAME.search(name)
        if match:
            block, projection, part = int(match[1]), match[2], match[3]
            blocks[block][f"{projection}.{part}"] = weight
            blocks[block][f"{projection}.scaling"] = torch.tensor(lora.alpha / lora.rank)
    return dict(blocks)


def merge_adapter(block: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The block's tensors with the adapter's delta added."""
    merged = dict(block)
    for name in adapter:
        if not name.endswith(".scaling"):
            continue
        projection = name.removesuffix(".scaling")
        delta = adapter[f"{projection}.lora_B"] @ adapter[f"{projection}.lora_A"] * adapter[name]
        merged[f"{projection}.weight"] = block[f"{projection}.weight"] + delta
    return merged


def base_model(model: nn.Module) -> GrowtxForCausalLM:
    """The growtx model inside a peft model, or the model itself."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    assert isinstance(inner, GrowtxForCausalLM)
    return inner


def without_peft_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a peft model under the names that they have in the model inside it; others keep their names."""
    return {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in state.items()}
