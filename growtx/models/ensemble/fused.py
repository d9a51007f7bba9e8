"""The ensemble as it is served: members of equal shape fused into one decoder.

The mean is linear, mean_n W_n h_n = [W_1 | .. | W_N] [h_1; ..; h_N] / N, so N equal stacks are one stack in which
members are a batch dimension of every product, attention has N H heads, and a single head has width N D. The logits
are those of the flat form; there are fewer and larger operations.

Blocks that all members have in common, from the lowest on, are the trunk. They run once, as they are, with H heads;
where they end, the members begin. A trunk of share s so costs s + N (1 - s) of one member, in time as in memory.

Shapes: N members, B batch, T positions, R = B T, D hidden size, H heads of a member, K head width, F MLP width.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from growtx.compat.transformers import PagedCall
from growtx.exceptions import ConfigError
from growtx.models.causal_lm import (
    GrowtxBlock,
    GrowtxOutput,
    GrowtxPreTrainedModel,
    Rotary,
    SubstrateEmbedding,
    apply_rotary,
    attend,
    block_inputs,
    build_around,
)
from growtx.models.configuration import IDENTITY, SPECIAL_TOKENS, GrowtxConfig
from growtx.models.ensemble.configuration import GrowtxEnsembleConfig
from growtx.models.ensemble.flat import GrowtxEnsembleForCausalLM
from growtx.models.ensemble.history import History
from growtx.models.ensemble.rules import RULES, TextSoFar
from growtx.models.loss import LMHead, chunked_cross_entropy, mean_over_targets, shift_labels


@strict
class GrowtxFusedEnsembleConfig(GrowtxConfig):
    """Configuration of the fused form: `num_attention_heads` counts the heads of all `num_members` members.

    Args:
        num_trunk_layers: lowest layers that all members share, which have the heads of one member.
        num_history_layers: cache layers after those of the blocks, for a rule that remembers the text.
    """

    model_type = "growtx_wide_ensemble"

    num_members: int = 1
    num_trunk_layers: int = 0
    num_history_layers: int = 0

    @property
    def heads_per_member(self) -> int:
        return self.num_attention_heads // self.num_members

    @property
    def members_of_layers(self) -> list[int]:
        """How many members' heads each layer has, and so its keys and values; the paged cache asks for it."""
        num_branch_layers = self.num_blocks - self.num_trunk_layers
        return [1] * self.num_trunk_layers + [self.num_members] * num_branch_layers + [1] * self.num_history_layers

    @property
    def num_blocks(self) -> int:
        return self.num_hidden_layers - self.num_history_layers


class MemberLinear(nn.Module):
    """A linear map per member, as one batched product: [N, B, T, in] to [N, B, T, out]."""

    def __init__(self, num_members: int, num_inputs: int, num_outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_members, num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.empty(num_members, 1, num_outputs)) if bias else None

    def forward(self, states_NBTi: torch.Tensor) -> torch.Tensor:
        rows_NRi = states_NBTi.flatten(1, 2)
        product_NRo = (
            torch.bmm(rows_NRi, self.weight) if self.bias is None else torch.baddbmm(self.bias, rows_NRi, self.weight)
        )
        return product_NRo.view(*states_NBTi.shape[:3], -1)


class MemberLayerNorm(nn.Module):
    """A layer norm per member on [N, B, T, D]."""

    def __init__(self, config: GrowtxFusedEnsembleConfig | GrowtxEnsembleConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_members, 1, 1, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.num_members, 1, 1, config.hidden_size))
        self.eps = config.layer_norm_eps

    def forward(self, states_NBTD: torch.Tensor) -> torch.Tensor:
        normed_NBTD = F.layer_norm(states_NBTD, states_NBTD.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias, normed_NBTD, self.weight)


class FusedAttention(nn.Module):
    """All members' heads in one call of the attention."""

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: GrowtxFusedEnsembleConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.scaling = config.head_dim**-0.5
        self.qkv_proj = MemberLinear(config.num_members, config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = MemberLinear(config.num_members, config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        states_NBTD: torch.Tensor,
        rotary: Rotary,
        *,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        qkv_NBT3HK = self.qkv_proj(states_NBTD).unflatten(-1, (3, -1, self.config.head_dim))
        query, key, value = qkv_NBT3HK.permute(3, 1, 0, 4, 2, 5).flatten(2, 3)  # each [B, N H, T, K]
        query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        states = (query, key, value, attention_mask)
        mixed, _ = attend(self, self.config, *states, scaling=self.scaling, **kwargs)  # [B, T, N H, K]
        mixed_BTND = mixed.reshape(*mixed.shape[:2], *states_NBTD.shape[::3])
        output_NBTD: torch.Tensor = self.o_proj(mixed_BTND.permute(2, 0, 1, 3))
        return output_NBTD


class FusedBlock(nn.Module):
    """The blocks of one depth of all members."""

    def __init__(self, config: GrowtxFusedEnsembleConfig, layer_idx: int) -> None:
        super().__init__()
        members, width, mlp_width = config.num_members, config.hidden_size, config.mlp_width
        self.input_layernorm = MemberLayerNorm(config)
        self.self_attn = FusedAttention(config, layer_idx)
        self.post_attention_layernorm = MemberLayerNorm(config)
        self.up_proj = MemberLinear(members, width, mlp_width, bias=True)
        self.down_proj = MemberLinear(members, mlp_width, width, bias=True)

    def forward(self, states_NBTD: torch.Tensor, rotary: Rotary, **kwargs: Any) -> torch.Tensor:
        states_NBTD = states_NBTD + self.self_attn(self.input_layernorm(states_NBTD), rotary, **kwargs)
        inner_NBTF = F.gelu(self.up_proj(self.post_attention_layernorm(states_NBTD)))
        output_NBTD: torch.Tensor = states_NBTD + self.down_proj(inner_NBTF)
        return output_NBTD


class GrowtxFusedEnsembleForCausalLM(GrowtxPreTrainedModel, GenerationMixin):
    """N members of equal shape and a linear rule, fused into one decoder; `to_fused` makes one from the flat form.

    `layers` are the trunk's blocks, if there is one, and above them one fused block for each depth.
    """

    config_class = GrowtxFusedEnsembleConfig
    config: GrowtxFusedEnsembleConfig
    base_model_prefix = "wide"
    supports_gradient_checkpointing = False
    _no_split_modules = ["FusedBlock", "GrowtxBlock"]  # noqa: RUF012
    _can_record_outputs: dict[str, Any] = {}  # noqa: RUF012 - states here are of all members at once
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, config: GrowtxFusedEnsembleConfig) -> None:
        super().__init__(config)
        self.embed_tokens = SubstrateEmbedding(config)
        trunk, depth = config.num_trunk_layers, config.num_blocks
        self.layers = nn.ModuleList([GrowtxBlock(config, index) for index in range(trunk)])
        self.layers.extend([FusedBlock(config, index) for index in range(trunk, depth)])
        self.norm = MemberLayerNorm(config)
        self.lm_head = LMHead(config, num_inputs=config.num_members * config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MemberLayerNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, MemberLinear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> GrowtxOutput:
        """Logits; with `labels` the mean loss, in training alone (see `GrowtxForCausalLM.forward`)."""
        rows_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        text = self.read(input_ids, attention_mask, rows_BTD, position_ids, past_key_values, **kwargs)
        joined = torch.cat(list(text.states), dim=-1)  # [B, T, N D]
        result = GrowtxOutput(past_key_values=past_key_values)
        if labels is None or not (self.training if skip_logits is None else skip_logits):
            result.logits = self.lm_head(slice_logits_to_keep(joined, logits_to_keep))
        if labels is not None:
            targets_BT = shift_labels(labels)
            loss, nll_BT = chunked_cross_entropy(joined, self.lm_head, targets_BT)
            assert nll_BT is not None
            result.loss, result.token_nll = mean_over_targets(loss, targets_BT), nll_BT[:, :-1]
        return result

    def read(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        rows_BTD: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> TextSoFar:
        """What rules combine, as the flat form's `read` has it: the members' final states and the trunk's.

        `rows_BTD` are given in place of tokens; then no rule can look at the tokens themselves.
        """
        rows_BTD = self.embed_tokens(input_ids) if rows_BTD is None else rows_BTD
        context = block_inputs(self.config, rows_BTD, attention_mask, position_ids, past_key_values)
        paged = PagedCall.of(kwargs)
        history = History.of(
            self.config, context["position_ids"], past_key_values, attention_mask=attention_mask, paged=paged
        )
        context |= {"past_key_values": past_key_values, **kwargs}
        trunk_BTD = rows_BTD
        for block in self.layers[: self.config.num_trunk_layers]:
            trunk_BTD = block(trunk_BTD, **context)
        ids_BT = torch.empty(0, dtype=torch.long) if input_ids is None else input_ids
        states_NBTD = trunk_BTD.expand(self.config.num_members, -1, -1, -1)
        for block in self.layers[self.config.num_trunk_layers :]:
            states_NBTD = block(states_NBTD, **context)
        return TextSoFar(ids_BT, rows_BTD, list(self.norm(states_NBTD)), [], history, trunk_BTD)


# From the flat form of an ensemble to the fused one.
#
# Shapes: N members, D hidden size, V vocabulary.


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
    *IDENTITY,
    *SPECIAL_TOKENS,
)


@torch.no_grad()
def to_fused(ensemble: GrowtxEnsembleForCausalLM, *, num_history_layers: int = 0) -> GrowtxFusedEnsembleForCausalLM:
    """The same ensemble as one decoder: logits within 1e-4, weights restacked into new tensors.

    Needs members of equal depth and a rule that is linear with constant weights (`mean`, `weighted-mean`), which is
    folded into the one head. Lower blocks that all members share become the trunk and keep their tensors; those that
    only some share are repeated.

    Args:
        num_history_layers: cache layers for a rule that the caller applies to what `read` returns.

    Raises:
        ConfigError: when depths differ or the rule needs every member's own logits.
    """
    config = ensemble.config
    depths = [len(blocks) for blocks in config.blocks_of_members]
    if len(set(depths)) > 1:
        raise ConfigError(
            f"members of {', '.join(map(str, depths))} blocks cannot run as one fused decoder", "Serve the flat form"
        )
    if not ensemble.rule.pools_linearly:
        linear = ", ".join(name for name, rule in RULES.items() if rule.pools_linearly)
        raise ConfigError(
            f"rule {ensemble.rule.name} needs every member's own logits, which the fused form does not keep",
            f"Serve the flat form, or use one of {linear}",
        )
    fused_config = GrowtxFusedEnsembleConfig(
        **{key: getattr(config, key) for key in KEPT_SETTINGS},
        num_members=config.num_members,
        num_trunk_layers=config.num_trunk_blocks,
        num_attention_heads=config.num_members * config.num_attention_heads,
        num_hidden_layers=depths[0] + num_history_layers,
        num_history_layers=num_history_layers,
        dtype=ensemble.dtype,
    )
    tensors: Tensors = {"embed_tokens.weight": ensemble.embed_tokens.weight}
    for depth, indices in enumerate(zip(*config.blocks_of_members, strict=True)):
        blocks = [ensemble.layers[index].state_dict(keep_vars=True) for index in indices]
        parts = blocks[0] if depth < config.num_trunk_blocks else _fused_block(blocks)
        tensors |= {f"layers.{depth}.{name}": tensor for name, tensor in parts.items()}
    norms = [norm.state_dict() for norm in ensemble.norms]
    tensors |= {f"norm.{kind}": _stacked(norms, kind)[:, None, None] for kind in ("weight", "bias")}
    heads = [head.state_dict() for head in ensemble.lm_heads]
    tensors |= {f"lm_head.{name}": tensor for name, tensor in _fused_head(heads, _constant_weights(ensemble)).items()}
    return build_around(GrowtxFusedEnsembleForCausalLM, fused_config, tensors, like=ensemble)


def _constant_weights(ensemble: GrowtxEnsembleForCausalLM) -> torch.Tensor:
    some_token = torch.zeros(1, 1, dtype=torch.long, device=ensemble.device)
    return ensemble.rule.weights(ensemble.read(some_token))


def _stacked(members: list[Tensors], name: str) -> torch.Tensor:
    return torch.stack([tensors[name] for tensors in members])


def _fused_block(members: list[Tensors]) -> Tensors:
    """Linear maps are stored [out, in] by torch and [N, in, out] for batched products."""
    fused: Tensors = {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        for kind in ("weight", "bias"):
            fused[f"{norm}.{kind}"] = _stacked(members, f"{norm}.{kind}")[:, None, None]
    queries_keys_values = [_stacked(members, f"self_attn.{name}_proj.weight") for name in "qkv"]
    fused["self_attn.qkv_proj.weight"] = torch.cat(queries_keys_values, dim=1)
    fused["self_attn.o_proj.weight"] = _stacked(members, "self_attn.o_proj.weight")
    for name in ("up_proj", "down_proj"):
        fused[f"{name}.weight"] = _stacked(members, f"mlp.{name}.weight")
        fused[f"{name}.bias"] = _stacked(members, f"mlp.{name}.bias")[:, None]
    return {name: t.transpose(1, 2).contiguous() if "proj.weight" in name else t for name, t in fused.items()}


def _fused_head(members: list[Tensors], weights_N: torch.Tensor) -> Tensors:
    """[w_1 W_1 | .. | w_N W_N] and sum of w_n b_n."""
    weighted = [{k: t * w.to(t) for k, t in tensors.items()} for tensors, w in zip(members, weights_N, strict=True)]
    head = {"weight": torch.cat([tensors["weight"] for tensors in weighted], dim=1)}
    if "bias" in members[0]:
        head["bias"] = _stacked(weighted, "bias").sum(0)
    return head
