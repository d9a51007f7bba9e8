"""The decoder that grows: a transformers model whose prefix can be skipped, cached or frozen.

Shapes: B batch, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from growtx.exceptions import ConfigError
from growtx.models.block import GrowtxAttention, GrowtxBlock, SubstrateEmbedding, block_inputs, initialize_module
from growtx.models.configuration import GrowtxConfig
from growtx.models.loss import LMHead, chunked_cross_entropy, mean_over_targets, shift_labels


@dataclass
class GrowtxOutput(CausalLMOutputWithPast):
    """`token_nll` [B, T-1]: nats of the tokens at positions 1..T-1, 0 where the label is ignored."""

    token_nll: torch.Tensor | None = None


class GrowtxPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about every growtx model."""

    config_class = GrowtxConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GrowtxBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GrowtxBlock, "attentions": GrowtxAttention}  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        initialize_module(module, self.config)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refused: the substrate is made for one vocabulary and shared by everything grown on it."""
        raise ConfigError(
            "the vocabulary of a growtx model cannot be resized, because its substrate is frozen and shared",
            "Build a tokenizer and substrate of the wanted size and grow a new model on them",
        )


class GrowtxModel(GrowtxPreTrainedModel):
    """Substrate, blocks and final norm."""

    def __init__(self, config: GrowtxConfig) -> None:
        super().__init__(config)
        self.embed_tokens = SubstrateEmbedding(config)
        self.layers = nn.ModuleList([GrowtxBlock(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        prefix_hidden_states: torch.Tensor | None = None,
        first_block: int = 0,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the blocks from `first_block` on; see `GrowtxForCausalLM.forward`."""
        hidden_BTD = self._entry_states(input_ids, inputs_embeds, prefix_hidden_states, first_block)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and first_block == 0
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        context = block_inputs(self.config, hidden_BTD, attention_mask, position_ids, past_key_values)
        for block in self.layers[first_block:]:
            hidden_BTD = block(hidden_BTD, past_key_values=past_key_values, use_cache=use_cache, **context, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_BTD), past_key_values=past_key_values)

    @torch.no_grad()
    def forward_prefix(
        self, input_ids: torch.Tensor, num_blocks: int, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """States [B, T, D] that leave the lowest `num_blocks` blocks, without autograd, cache or final norm."""
        hidden_BTD: torch.Tensor = self.embed_tokens(input_ids)
        context = block_inputs(self.config, hidden_BTD, attention_mask, None, None)
        for block in self.layers[:num_blocks]:
            hidden_BTD = block(hidden_BTD, **context)
        return hidden_BTD

    def _entry_states(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        prefix_hidden_states: torch.Tensor | None,
        first_block: int,
    ) -> torch.Tensor:
        if first_block and prefix_hidden_states is None:
            raise ValueError(f"first_block={first_block} needs prefix_hidden_states, the states that enter it")
        if prefix_hidden_states is not None:
            return prefix_hidden_states
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids, inputs_embeds and prefix_hidden_states")
        return inputs_embeds if inputs_embeds is not None else self.embed_tokens(input_ids)


class GrowtxForCausalLM(GrowtxPreTrainedModel, GenerationMixin):
    """A growtx decoder with its LM head: `generate()`, caches, peft and lm-eval's HF backend work as they are."""

    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012 - the head is never tied to the frozen substrate

    def __init__(self, config: GrowtxConfig) -> None:
        super().__init__(config)
        self.model = GrowtxModel(config)
        self.lm_head: nn.Module = LMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

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
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> GrowtxOutput:
        """Logits, or with `labels` the loss alone.

        Args:
            labels: [B, T], aligned with `input_ids` (the shift happens here); -100 is ignored. With labels the
                loss is computed in chunks and `logits` stay `None`, because they would be the largest tensor.
            num_items_in_batch: divides the summed loss instead of the number of labels (gradient accumulation).
            prefix_hidden_states, first_block: states [B, T, D] that enter block `first_block`, from
                `forward_prefix`; `input_ids` and everything below that block are then not used.
        """
        if labels is not None and use_cache is None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        result = GrowtxOutput(
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        if labels is None:
            result.logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
            return result
        targets_BT = shift_labels(labels)
        loss_sum, nll_BT = chunked_cross_entropy(
            outputs.last_hidden_state, self.lm_head, targets_BT, kernel=self.config.loss_kernel
        )
        result.token_nll = None if nll_BT is None else nll_BT[:, :-1]
        result.loss = mean_over_targets(loss_sum, targets_BT, num_items_in_batch)
        return result

    def forward_prefix(
        self, input_ids: torch.Tensor, num_blocks: int, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """States [B, T, D] that enter block `num_blocks`, computed without autograd; see `first_block`."""
        return self.model.forward_prefix(input_ids, num_blocks, attention_mask)
