"""growtx models without growtx: `AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)`.

This file is written beside the weights. It needs torch and transformers (4.57 or newer) alone, and computes what
`growtx.models.causal_lm` computes, without its other abilities (stages, fused losses, flash attention, ensembles).

Shapes: B batch, T new positions, S all, D hidden size, H heads, K head width, V vocabulary, E substrate width.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class GrowtxConfig(PretrainedConfig):
    """Shape and identity of a growtx decoder."""

    model_type = "growtx"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=65536,
        hidden_size=1024,
        num_hidden_layers=9,
        num_attention_heads=32,
        intermediate_size=None,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        layer_norm_eps=1e-5,
        lm_head_bias=True,
        substrate_width=None,
        substrate_expansion="none",
        substrate_kind=None,
        initializer_range=0.02,
        num_layers_for_init=None,
        substrate_reinjection=False,
        use_cache=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.layer_norm_eps = layer_norm_eps
        self.lm_head_bias = lm_head_bias
        self.substrate_width = substrate_width or hidden_size
        self.substrate_expansion = substrate_expansion
        self.substrate_kind = substrate_kind
        self.initializer_range = initializer_range
        self.num_layers_for_init = num_layers_for_init
        self.substrate_reinjection = substrate_reinjection
        self.use_cache = use_cache
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)


class SubstrateEmbedding(nn.Embedding):
    """Rows of the frozen substrate [V, E], expanded to D. Only a learned one trains."""

    def __init__(self, config):
        super().__init__(config.vocab_size, config.substrate_width)
        self.expansion = config.substrate_expansion
        self.num_repeats = config.hidden_size // config.substrate_width
        self.is_frozen = config.substrate_kind != "learned"
        self.weight.requires_grad_(not self.is_frozen)

    def forward(self, ids_BT):
        rows_BTE = F.embedding(ids_BT, self.weight.detach() if self.is_frozen else self.weight)
        if self.expansion == "interleave":
            return rows_BTE.repeat_interleave(self.num_repeats, dim=-1)
        return rows_BTE.repeat(1, 1, self.num_repeats) if self.expansion == "tile" else rows_BTE


class GrowtxAttention(nn.Module):
    """Causal attention with rotary positions, projections without bias."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, hidden_BTD, rotary, mask_BTS, past_key_values):
        shape = (*hidden_BTD.shape[:-1], -1, self.head_dim)
        query, key, value = (p(hidden_BTD).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        query, key = rotate(query, rotary), rotate(key, rotary)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        mixed_BHTK = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_BTS[:, None])
        return self.o_proj(mixed_BHTK.transpose(1, 2).flatten(2))


def rotate(states_BHTK, rotary):
    """Rotate the pairs (k, k + K/2) of every head."""
    cos, sin = rotary
    first, second = states_BHTK.chunk(2, dim=-1)
    return states_BHTK * cos + torch.cat((-second, first), dim=-1) * sin


class GrowtxMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_BTD):
        return self.down_proj(F.gelu(self.up_proj(hidden_BTD)))


class GrowtxBlock(nn.Module):
    """Pre-norm block: attention, then MLP."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = GrowtxAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GrowtxMLP(config)
        if config.substrate_reinjection:
            self.reinjection = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_BTD, rotary, mask_BTS, past_key_values, substrate_BTD):
        if hasattr(self, "reinjection"):
            hidden_BTD = hidden_BTD + self.reinjection * substrate_BTD
        hidden_BTD = hidden_BTD + self.self_attn(self.input_layernorm(hidden_BTD), rotary, mask_BTS, past_key_values)
        return hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD))


class GrowtxPreTrainedModel(PreTrainedModel):
    config_class = GrowtxConfig
    base_model_prefix = "model"
    _no_split_modules = ["GrowtxBlock"]
    _supports_sdpa = True

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.zero_()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        embedding = (loaded[0] if isinstance(loaded, tuple) else loaded).get_input_embeddings()
        embedding.weight.requires_grad_(not embedding.is_frozen)
        return loaded


class GrowtxModel(GrowtxPreTrainedModel):
    """The blocks between substrate and head."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = SubstrateEmbedding(config)
        self.layers = nn.ModuleList(GrowtxBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        use_cache=None, **kwargs,
    ):  # fmt: skip
        hidden_BTD = substrate_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions_T = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device) + num_past
        mask_BTS = self._mask(positions_T, attention_mask, hidden_BTD)
        rotary = self._rotary(positions_T[None] if position_ids is None else position_ids, hidden_BTD.dtype)
        for block in self.layers:
            hidden_BTD = block(hidden_BTD, rotary, mask_BTS, past_key_values, substrate_BTD)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_BTD), past_key_values=past_key_values)

    def _mask(self, positions_T, attention_mask, hidden_BTD):
        """What each new position may look at, as an additive mask; finite, so that padded rows are no NaN."""
        num_all = int(positions_T[-1]) + 1
        seen_BTS = (torch.arange(num_all, device=positions_T.device) <= positions_T[:, None])[None]
        if attention_mask is not None and attention_mask.dim() == 2:
            seen_BTS = seen_BTS & attention_mask[:, None, :num_all].bool()
        seen_BTS = seen_BTS.expand(len(hidden_BTD), -1, -1)
        lowest = torch.finfo(hidden_BTD.dtype).min
        return hidden_BTD.new_zeros(seen_BTS.shape).masked_fill(~seen_BTS, lowest)

    def _rotary(self, position_ids_BT, dtype):
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids_BT.device)
        angles_BTK2 = position_ids_BT[..., None].float() / self.config.rope_theta ** (steps / head_dim)
        angles_B1TK = torch.cat((angles_BTK2, angles_BTK2), dim=-1)[:, None]
        return angles_B1TK.cos().to(dtype), angles_B1TK.sin().to(dtype)


class GrowtxForCausalLM(GrowtxPreTrainedModel, GenerationMixin):
    """A growtx decoder with its LM head."""

    def __init__(self, config):
        super().__init__(config)
        self.model = GrowtxModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, logits_to_keep=0, **kwargs,
    ):  # fmt: skip
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
            if math.isnan(float(loss.detach())):  # not a single label
                loss = loss.new_zeros(())
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=outputs.past_key_values)
