"""Export to architectures that other programs know, exact or not at all.

`gpt_neox` is this decoder without a bias in the LM head. A bias becomes the weight of a constant: the residual stream
is centred, which no LayerNorm notices, and gets one head's width of coordinates that are always 0; the final norm sets
one of them to 1. `phi` has a bias in its head, but its blocks add attention and MLP side by side: one block becomes
two, the first without MLP, the second without attention, at twice the weights of the blocks. Nothing with RMSNorm or
a gated MLP can be exact: a constant does not survive RMSNorm. Every export is loaded again by the stock class and must
give the same logits.

Shapes: B batch, T positions, D hidden size, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from growtx.exceptions import ExportError
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.configuration import GrowtxConfig
from growtx.models.saving import save_directory

Tensors = dict[str, torch.Tensor]
MAX_LOGIT_DIFFERENCE = 1e-4
NORMS = ("input_layernorm", "post_attention_layernorm")


def export(
    model: PreTrainedModel, format: str, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> float:
    """Write a Hugging Face directory of a stock architecture; returns the largest logit difference found.

    The directory appears complete or not at all.

    Raises:
        ExportError: the format is unknown or cannot be exact (naming the setting that would make it so), the
            directory is taken, or the written model does not give the same logits.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ExportError(f"{directory} is not empty", "Choose a directory that does not exist yet")
    stock = to_stock(model, format)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        written = Path(scratch) / "model"
        save_directory(stock, tokenizer, written)
        difference = _largest_difference(model, written)
        if not difference <= MAX_LOGIT_DIFFERENCE:
            raise ExportError(
                f"the exported model's logits differ by {difference:.1e}, more than {MAX_LOGIT_DIFFERENCE:.0e}",
                "Keep the growtx directory, and report this with the model's config.json",
            )
        if directory.exists():
            directory.rmdir()
        shutil.move(written, directory)
    return difference


@torch.no_grad()
def to_stock(model: PreTrainedModel, format: str) -> PreTrainedModel:
    """The same decoder as a model of a stock architecture, in memory; errors as in `export`."""
    if format not in FORMATS:
        raise ExportError(f"export format {format!r} is unknown", "Use phi or gpt_neox")
    if not isinstance(model, GrowtxForCausalLM):
        raise ExportError("an ensemble has no stock architecture", "Export its members one by one")
    if model.config.substrate_reinjection:
        raise ExportError(
            "no stock architecture adds the substrate again in every block (model.substrate_reinjection)",
            "Use the growtx directory, which opens with trust_remote_code=True, or grow without it",
        )
    return FORMATS[format](model).eval()


def _shared_settings(config: GrowtxConfig) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
    more = ("layer_norm_eps", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0}
    settings = {name: getattr(config, name) for name in (*names, *more)}
    return {**settings, "rope_parameters": rope, "hidden_act": "gelu", "tie_word_embeddings": False}


def _expanded_substrate(model: GrowtxForCausalLM) -> torch.Tensor:
    every_token_1V = torch.arange(model.config.vocab_size, device=model.device)[None]
    rows_VD: torch.Tensor = model.model.embed_tokens(every_token_1V)[0]
    return rows_VD


def _to_gpt_neox(model: GrowtxForCausalLM) -> PreTrainedModel:
    """The bias of the head, if there is one, needs a wider model, which is computed and stored in fp32."""
    if model.config.lm_head_bias:
        return _gpt_neox(copy.deepcopy(model).float(), num_extra=model.config.head_dim)
    return _gpt_neox(model, num_extra=0).to(model.dtype)


def _gpt_neox(model: GrowtxForCausalLM, *, num_extra: int) -> PreTrainedModel:
    """The stock model with `num_extra` coordinates that hold nothing but the constant for the head's bias."""
    config, width = model.config, model.config.hidden_size + num_extra
    settings = _shared_settings(config) | {"hidden_size": width}
    settings["layer_norm_eps"] = config.layer_norm_eps * config.hidden_size / width
    settings["num_attention_heads"] = width // config.head_dim
    num_blocks = config.num_hidden_layers
    stock = GPTNeoXForCausalLM(
        GPTNeoXConfig(**settings, num_hidden_layers=num_blocks, use_parallel_residual=False, attention_bias=True)
    )
    substrate_VD = _expanded_substrate(model)
    head: Any = model.lm_head
    head_VD = head.weight
    if num_extra:
        substrate_VD = substrate_VD - substrate_VD.mean(1, keepdim=True)
        head_VD = torch.cat((head_VD, head.bias[:, None]), dim=1)
    tensors: Tensors = {"gpt_neox.embed_in.weight": _wider(substrate_VD, 1, width)}
    tensors["lm_head.weight"] = _wider(head_VD, 1, width)
    tensors |= _wider_norm(model.model.norm, width, "gpt_neox.final_layer_norm.")
    if num_extra:
        tensors["gpt_neox.final_layer_norm.bias"][config.hidden_size] = 1.0
    for index, block in enumerate(model.model.layers):
        tensors |= _gpt_neox_block(block, config, width, f"gpt_neox.layers.{index}.")
    return _filled(stock, tensors)


def _gpt_neox_block(block: nn.Module, config: GrowtxConfig, width: int, to: str) -> Tensors:
    own = block.state_dict()
    down, out = own["mlp.down_proj.weight"], own["self_attn.o_proj.weight"]
    down_bias = own["mlp.down_proj.bias"]
    if width > config.hidden_size:  # what writes into the stream is centred, so that the stream is
        down, out, down_bias = down - down.mean(0), out - out.mean(0), down_bias - down_bias.mean()
    # gpt_neox keeps queries, keys and values of one head together
    heads_HKD = [own[f"self_attn.{name}_proj.weight"].unflatten(0, (-1, config.head_dim)) for name in "qkv"]
    qkv = torch.stack(heads_HKD, dim=1).flatten(0, 2)
    tensors = {
        "attention.query_key_value.weight": _wider(_wider(qkv, 1, width), 0, 3 * width),
        "attention.query_key_value.bias": qkv.new_zeros(3 * width),
        "attention.dense.weight": _wider(_wider(out, 0, width), 1, width),
        "attention.dense.bias": out.new_zeros(width),
        "mlp.dense_h_to_4h.weight": _wider(own["mlp.up_proj.weight"], 1, width),
        "mlp.dense_h_to_4h.bias": own["mlp.up_proj.bias"],
        "mlp.dense_4h_to_h.weight": _wider(down, 0, width),
        "mlp.dense_4h_to_h.bias": _wider(down_bias, 0, width),
    }
    norms = {name: _wider_norm(block.get_submodule(name), width, f"{name}.") for name in NORMS}
    return _renamed(tensors | {key: value for norm in norms.values() for key, value in norm.items()}, to)


def _wider(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """The tensor with zeros appended along a dimension."""
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat((tensor, tensor.new_zeros(shape)), dim=dim)


def _wider_norm(norm: Any, width: int, to: str) -> Tensors:
    """LayerNorm over a centred stream with zeros appended: the variance shrinks by the share of what is not padding."""
    weight = norm.weight * (len(norm.weight) / width) ** 0.5
    return {f"{to}weight": _wider(weight, 0, width), f"{to}bias": _wider(norm.bias, 0, width)}


def _to_phi(model: GrowtxForCausalLM) -> PreTrainedModel:
    config = model.config
    stock = PhiForCausalLM(PhiConfig(**_shared_settings(config), num_hidden_layers=2 * config.num_hidden_layers))
    tensors = {name: torch.zeros_like(tensor) for name, tensor in stock.state_dict().items()}
    tensors["model.embed_tokens.weight"] = _expanded_substrate(model)
    tensors |= _renamed(model.lm_head.state_dict(), "lm_head.")
    tensors |= _renamed(model.model.norm.state_dict(), "model.final_layernorm.")
    for index, block in enumerate(model.model.layers):
        own, attention, mlp = block.state_dict(), f"model.layers.{2 * index}.", f"model.layers.{2 * index + 1}."
        for name, stock_name in zip("qkvo", ("q_proj", "k_proj", "v_proj", "dense"), strict=True):
            tensors[f"{attention}self_attn.{stock_name}.weight"] = own[f"self_attn.{name}_proj.weight"]
        for kind in ("weight", "bias"):
            tensors[f"{attention}input_layernorm.{kind}"] = own[f"input_layernorm.{kind}"]
            tensors[f"{mlp}input_layernorm.{kind}"] = own[f"post_attention_layernorm.{kind}"]
            tensors[f"{mlp}mlp.fc1.{kind}"] = own[f"mlp.up_proj.{kind}"]
            tensors[f"{mlp}mlp.fc2.{kind}"] = own[f"mlp.down_proj.{kind}"]
    return _filled(stock, tensors).to(model.dtype)


def _to_llama(model: GrowtxForCausalLM) -> PreTrainedModel:
    raise ExportError(
        "llama has RMSNorm and a gated MLP where growtx has LayerNorm with bias and GELU, so no setting makes it exact",
        "Export to gpt_neox or phi",
    )


FORMATS: dict[str, Callable[[GrowtxForCausalLM], PreTrainedModel]] = {
    "gpt_neox": _to_gpt_neox,
    "phi": _to_phi,
    "llama": _to_llama,
}


def _renamed(tensors: Tensors, prefix: str) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _filled(stock: PreTrainedModel, tensors: Tensors) -> PreTrainedModel:
    stock.load_state_dict(tensors, strict=True)
    return stock


@torch.no_grad()
def _largest_difference(model: PreTrainedModel, directory: Path) -> float:
    """Between the logits of the model and of the directory as its stock class loads it, both in fp32."""
    length = min(64, model.config.max_position_embeddings)
    tokens_BT = torch.randint(0, model.config.vocab_size, (4, length), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[1, : length // 2] = 0  # a padded row, so that positions and masks are compared too
    exported = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    is_comparable = model.dtype == torch.float32 and model.device.type == "cpu"
    original = model if is_comparable else copy.deepcopy(model).float().cpu()
    visible_BT = mask_BT.bool()
    ours, theirs = (each(tokens_BT, attention_mask=mask_BT).logits[visible_BT] for each in (original, exported))
    return float((ours - theirs).abs().max())
