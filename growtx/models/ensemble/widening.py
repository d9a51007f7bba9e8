"""From the flat form of an ensemble to the wide one.

Shapes: N members, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch

from growtx.exceptions import ConfigError
from growtx.models.building import build_around
from growtx.models.ensemble.flat import GrowtxEnsembleForCausalLM
from growtx.models.ensemble.rules import RULES
from growtx.models.ensemble.wide import GrowtxWideEnsembleConfig, GrowtxWideEnsembleForCausalLM

Tensors = dict[str, torch.Tensor]

KEPT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "rope_theta",
    "layer_norm_eps",
    "lm_head_bias",
    "substrate_width",
    "substrate_expansion",
    "substrate_fingerprint",
    "tokenizer_fingerprint",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@torch.no_grad()
def to_wide(ensemble: GrowtxEnsembleForCausalLM) -> GrowtxWideEnsembleForCausalLM:
    """The same ensemble as one decoder: weights restacked into new tensors, logits within 1e-4.

    Needs members of equal depth and a rule that is linear with constant weights (`mean`, `weighted-mean`), which is
    folded into the one head. Shared lower blocks are repeated for every member.

    Raises:
        ConfigError: when depths differ or the rule needs every member's own logits.
    """
    config = ensemble.config
    depths = [len(blocks) for blocks in config.blocks_of_members]
    if len(set(depths)) > 1:
        raise ConfigError(
            f"members of {', '.join(map(str, depths))} blocks cannot run as one wide decoder", "Serve the flat form"
        )
    if not ensemble.rule.pools_linearly:
        linear = ", ".join(name for name, rule in RULES.items() if rule.pools_linearly)
        raise ConfigError(
            f"rule {ensemble.rule.name} needs every member's own logits, which the wide form does not keep",
            f"Serve the flat form, or use one of {linear}",
        )
    wide_config = GrowtxWideEnsembleConfig(
        **{key: getattr(config, key) for key in KEPT_SETTINGS},
        num_members=config.num_members,
        num_attention_heads=config.num_members * config.num_attention_heads,
        num_hidden_layers=depths[0],
        dtype=ensemble.dtype,
    )
    tensors: Tensors = {"embed_tokens.weight": ensemble.embed_tokens.weight}
    for depth in range(depths[0]):
        blocks = [ensemble.layers[blocks[depth]].state_dict() for blocks in config.blocks_of_members]
        tensors |= {f"layers.{depth}.{name}": tensor for name, tensor in _wide_block(blocks).items()}
    norms = [norm.state_dict() for norm in ensemble.norms]
    tensors |= {f"norm.{kind}": _stacked(norms, kind)[:, None, None] for kind in ("weight", "bias")}
    heads = [head.state_dict() for head in ensemble.lm_heads]
    tensors |= {f"lm_head.{name}": tensor for name, tensor in _wide_head(heads, _constant_weights(ensemble)).items()}
    return build_around(GrowtxWideEnsembleForCausalLM, wide_config, tensors, like=ensemble)


def _constant_weights(ensemble: GrowtxEnsembleForCausalLM) -> torch.Tensor:
    some_token = torch.zeros(1, 1, dtype=torch.long, device=ensemble.device)
    return ensemble.rule.weights(ensemble.read(some_token))


def _stacked(members: list[Tensors], name: str) -> torch.Tensor:
    return torch.stack([tensors[name] for tensors in members])


def _wide_block(members: list[Tensors]) -> Tensors:
    """Linear maps are stored [out, in] by torch and [N, in, out] for batched products."""
    wide: Tensors = {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        for kind in ("weight", "bias"):
            wide[f"{norm}.{kind}"] = _stacked(members, f"{norm}.{kind}")[:, None, None]
    queries_keys_values = [_stacked(members, f"self_attn.{name}_proj.weight") for name in "qkv"]
    wide["self_attn.qkv_proj.weight"] = torch.cat(queries_keys_values, dim=1)
    wide["self_attn.o_proj.weight"] = _stacked(members, "self_attn.o_proj.weight")
    for name in ("up_proj", "down_proj"):
        wide[f"{name}.weight"] = _stacked(members, f"mlp.{name}.weight")
        wide[f"{name}.bias"] = _stacked(members, f"mlp.{name}.bias")[:, None]
    return {name: t.transpose(1, 2).contiguous() if "proj.weight" in name else t for name, t in wide.items()}


def _wide_head(members: list[Tensors], weights_N: torch.Tensor) -> Tensors:
    """[w_1 W_1 | .. | w_N W_N] and sum of w_n b_n."""
    weighted = [{k: t * w.to(t) for k, t in tensors.items()} for tensors, w in zip(members, weights_N, strict=True)]
    head = {"weight": torch.cat([tensors["weight"] for tensors in weighted], dim=1)}
    if "bias" in members[0]:
        head["bias"] = _stacked(weighted, "bias").sum(0)
    return head
