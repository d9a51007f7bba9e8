"""Export to architectures that other programs know, exact or not at all.

`gpt_neox` is this decoder without a bias in the LM head. `phi` is the one stock architecture with such a bias, but
its blocks add attention and MLP side by side: one block becomes two, the first without MLP, the second without
attention, which is exact at twice the weights of the blocks. Nothing with RMSNorm or a gated MLP can be exact.
Every export is loaded again by the stock class and must give the same logits.

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

Tensors = dict[str, torch.Tensor]
MAX_LOGIT_DIFFERENCE = 1e-4


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
        stock.save_pretrained(written)
        if tokenizer is not None:
            tokenizer.save_pretrained(written)
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
        raise ExportError(f"export format {format!r} is unknown", f"Use one of {', '.join(FORMATS)}")
    if not isinstance(model, GrowtxForCausalLM):
        raise ExportError("an ensemble has no stock architecture", "Export its members one by one")
    return FORMATS[format](model).to(model.dtype).eval()


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
    config = model.config
    if config.lm_head_bias:
        raise ExportError(
            "gpt_neox has no bias in its LM head, so the export could not be exact",
            "Grow the model with model.lm_head_bias=false, or export to phi",
        )
    stock = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **_shared_settings(config),
            num_hidden_layers=config.num_hidden_layers,
            use_parallel_residual=False,
            attention_bias=False,
        )
    )
    tensors: Tensors = {"gpt_neox.embed_in.weight": _expanded_substrate(model)}
    tensors |= _renamed(model.lm_head.state_dict(), "lm_head.")
    tensors |= _renamed(model.model.norm.state_dict(), "gpt_neox.final_layer_norm.")
    for index, block in enumerate(model.model.layers):
        own, to = block.state_dict(), f"gpt_neox.layers.{index}."
        # gpt_neox keeps queries, keys and values of one head together
        heads_HKD = [own[f"self_attn.{name}_proj.weight"].unflatten(0, (-1, config.head_dim)) for name in "qkv"]
        tensors[f"{to}attention.query_key_value.weight"] = torch.stack(heads_HKD, dim=1).flatten(0, 2)
        tensors[f"{to}attention.dense.weight"] = own["self_attn.o_proj.weight"]
        for kind in ("weight", "bias"):
            tensors[f"{to}input_layernorm.{kind}"] = own[f"input_layernorm.{kind}"]
            tensors[f"{to}post_attention_layernorm.{kind}"] = own[f"post_attention_layernorm.{kind}"]
            tensors[f"{to}mlp.dense_h_to_4h.{kind}"] = own[f"mlp.up_proj.{kind}"]
            tensors[f"{to}mlp.dense_4h_to_h.{kind}"] = own[f"mlp.down_proj.{kind}"]
    return _filled(stock, tensors)


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
    return _filled(stock, tensors)


def _to_llama(model: GrowtxForCausalLM) -> PreTrainedModel:
    raise ExportError(
        "llama has RMSNorm and a gated MLP where growtx has LayerNorm with bias and GELU, so no setting makes it exact",
        "Export to gpt_neox (with model.lm_head_bias=false) or to phi",
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
