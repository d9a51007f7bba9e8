"""The decoder that grows: a transformers model whose prefix can be skipped, cached or frozen.

Shapes: B batch, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from growtx.compat.transformers import attention_of
from growtx.exceptions import ConfigError
from growtx.models.configuration import GrowtxConfig
from growtx.models.loss import LMHead, chunked_cross_entropy, mean_over_targets, shift_labels

# One decoder block, the unit of growth and of storage, and its initialisation.
#
# Shapes: B batch, T positions, D hidden size, H heads, K head width, F MLP width, V vocabulary, E substrate width.


STANDALONE_CODE = Path(__file__).parent / "standalone" / "modeling_growtx.py"
STANDALONE_CLASSES = {
    auto_class: f"modeling_growtx.{name}"
    for auto_class, name in (
        ("AutoConfig", "GrowtxConfig"),
        ("AutoModel", "GrowtxModel"),
        ("AutoModelForCausalLM", "GrowtxForCausalLM"),
    )
}
Rotary = tuple[torch.Tensor, torch.Tensor]


def rotary_angles(position_ids_BT: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Cosine and sine [B, T, K] of rotary position embeddings (Su et al., arXiv:2104.09864).

    Computed on every call instead of kept as a buffer: it costs microseconds, and a model built on the meta
    device, partitioned or cast to bf16 cannot lose or round it.
    """
    steps_K2 = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids_BT.device)
    frequencies_K2 = 1.0 / (theta ** (steps_K2 / head_dim))
    angles_BTK2 = position_ids_BT[..., None].float() * frequencies_K2
    angles_BTK = torch.cat((angles_BTK2, angles_BTK2), dim=-1)
    return angles_BTK.cos().to(dtype), angles_BTK.sin().to(dtype)


def apply_rotary(states_BHTK: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate the pairs (k, k + K/2) of every head."""
    cos_B1TK, sin_B1TK = (angle.unsqueeze(1) for angle in rotary)
    first, second = states_BHTK.chunk(2, dim=-1)
    return states_BHTK * cos_B1TK + torch.cat((-second, first), dim=-1) * sin_B1TK


def eager_attention(
    module: nn.Module,
    query_BHTK: torch.Tensor,
    key_BHSK: torch.Tensor,
    value_BHSK: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `attn_implementation="eager"`: the only one that returns its weights."""
    scores_BHTS = query_BHTK @ key_BHSK.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores_BHTS = scores_BHTS + attention_mask
    weights_BHTS = scores_BHTS.softmax(dim=-1, dtype=torch.float32).to(query_BHTK.dtype)
    mixed_BHTK = F.dropout(weights_BHTS, dropout, module.training) @ value_BHSK
    return mixed_BHTK.transpose(1, 2).contiguous(), weights_BHTS


def attend(module: nn.Module, config: GrowtxConfig, *states: torch.Tensor | None, **kwargs: Any) -> Any:
    """Attention through the implementation that transformers selected: eager, sdpa, flash or paged."""
    interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(attention_of(config), eager_attention)
    return interface(module, *states, dropout=0.0, **kwargs)


class ResidualLinear(nn.Linear):
    """A linear map whose output is added to the residual stream; only its initialisation differs."""


class GrowtxAttention(nn.Module):
    """Causal multi-head attention with rotary positions and projections without bias."""

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: GrowtxConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = ResidualLinear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_BTD: torch.Tensor,
        rotary: Rotary,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output [B, T, D] and, from the eager implementation, the weights [B, H, T, S]."""
        batch_and_time = hidden_BTD.shape[:-1]
        query_BHTK, key_BHTK, value_BHTK = (
            projection(hidden_BTD).view(*batch_and_time, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query_BHTK, key_BHSK, value_BHSK = apply_rotary(query_BHTK, rotary), apply_rotary(key_BHTK, rotary), value_BHTK
        if past_key_values is not None:
            key_BHSK, value_BHSK = past_key_values.update(key_BHSK, value_BHSK, self.layer_idx)
        states = (query_BHTK, key_BHSK, value_BHSK)
        mixed_BTHK, weights = attend(self, self.config, *states, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(mixed_BTHK.reshape(*batch_and_time, -1)), weights


class GrowtxMLP(nn.Module):
    """Two linear maps with bias and a GELU between them."""

    def __init__(self, config: GrowtxConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_width)
        self.down_proj = ResidualLinear(config.mlp_width, config.hidden_size)

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        output_BTD: torch.Tensor = self.down_proj(F.gelu(self.up_proj(hidden_BTD)))
        return output_BTD


class GrowtxBlock(GradientCheckpointingLayer):
    """Pre-norm block: attention, then MLP, each added to the residual stream. 12 D^2 + 9 D parameters.

    With `substrate_reinjection` the substrate's vectors, times a scalar that is 0 at first, are added before both
    (Jordan et al. 2024, github.com/KellerJordan/modded-nanogpt, and nanochat's `x0_lambdas`).
    """

    def __init__(self, config: GrowtxConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = GrowtxAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GrowtxMLP(config)
        if config.substrate_reinjection:
            self.reinjection = nn.Parameter(torch.zeros(1))

    def forward(
        self, hidden_BTD: torch.Tensor, rotary: Rotary, substrate_BTD: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Map the residual stream [B, T, D] to itself; `kwargs` go to the attention."""
        if substrate_BTD is not None:
            hidden_BTD = hidden_BTD + self.reinjection * substrate_BTD
        attended_BTD, _ = self.self_attn(self.input_layernorm(hidden_BTD), rotary, **kwargs)
        hidden_BTD = hidden_BTD + attended_BTD
        output_BTD: torch.Tensor = hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD))
        return output_BTD


def block_inputs(
    config: GrowtxConfig,
    hidden_BTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
) -> dict[str, Any]:
    """What all blocks of a forward pass share: rotary angles, mask and positions (after those in the cache)."""
    if position_ids is None:
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        position_ids = (torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device) + num_past).unsqueeze(0)
    mask = create_causal_mask(
        config=config,
        inputs_embeds=hidden_BTD,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
    )
    rotary = rotary_angles(position_ids, config.head_dim, config.rope_theta, hidden_BTD.dtype)
    return {"rotary": rotary, "attention_mask": mask, "position_ids": position_ids}


class SubstrateEmbedding(nn.Embedding):
    """Looks up rows of the substrate [V, E] and expands them to the model's width D.

    The substrate is what everything docks on, so it does not train unless this module itself is told to: flags that
    are set on a whole model (`model.requires_grad_()`, peft, a trainer) do not reach it.
    """

    def __init__(self, config: GrowtxConfig) -> None:
        super().__init__(config.vocab_size, config.embedding_width)
        self.requires_grad_(config.trains_substrate)
        self.expansion = config.substrate_expansion
        self.num_repeats = config.hidden_size // config.embedding_width

    def requires_grad_(self, requires_grad: bool = True) -> SubstrateEmbedding:
        """Let the substrate train, or not."""
        self.is_frozen = not requires_grad
        return super().requires_grad_(requires_grad)

    def forward(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        rows_BTE = F.embedding(input_ids_BT, self.weight.detach() if self.is_frozen else self.weight)
        if self.expansion == "interleave":
            return rows_BTE.repeat_interleave(self.num_repeats, dim=-1)
        return rows_BTE.repeat(1, 1, self.num_repeats) if self.expansion == "tile" else rows_BTE


@torch.no_grad()
def initialize_block(block: nn.Module, config: GrowtxConfig, generator: torch.Generator | None = None) -> None:
    """Draw a block's parameters anew, deterministically for a given random generator; see `initialize_module`."""
    for module in block.modules():
        initialize_module(module, config, generator)


def initialize_module(module: nn.Module, config: GrowtxConfig, generator: torch.Generator | None = None) -> None:
    """Initialise the parameters that a module owns itself.

    Weights are normal with `initializer_range`; those of a `ResidualLinear` are divided by sqrt(2 L), which keeps
    the residual stream's variance independent of depth and a new block nearly silent. Biases are zero, norms the
    identity.
    """
    if isinstance(module, (nn.Linear, nn.Embedding)):
        is_residual = isinstance(module, ResidualLinear)
        std = config.residual_initializer_range if is_residual else config.initializer_range
        nn.init.normal_(module.weight, std=std, generator=generator)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, GrowtxBlock) and hasattr(module, "reinjection"):
        nn.init.zeros_(module.reinjection)
    bias = getattr(module, "bias", None)
    if bias is not None:
        nn.init.zeros_(bias)


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

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model; its substrate is frozen, unless it is a learned one."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info=True
        embedding = model.get_input_embeddings()
        embedding.requires_grad_(model.config.trains_substrate)  # loading makes new parameters, which all train
        if model.can_generate():
            model.generation_config.bos_token_id = model.config.bos_token_id  # older files name another one
        return loaded

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Set the flag of all parameters but a frozen substrate's."""
        super().requires_grad_(requires_grad)
        embedding = self.get_input_embeddings()
        embedding.weight.requires_grad_(requires_grad and not embedding.is_frozen)
        return self

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
        if self.config.substrate_reinjection:
            context["substrate_BTD"] = self._substrate(input_ids, inputs_embeds)
        for block in self.layers[first_block:]:
            hidden_BTD = block(hidden_BTD, past_key_values=past_key_values, use_cache=use_cache, **context, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_BTD), past_key_values=past_key_values)

    @torch.no_grad()
    def forward_prefix(
        self, input_ids: torch.Tensor, num_blocks: int, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Output states [B, T, D] of the lowest `num_blocks` blocks, without autograd, cache or final norm."""
        hidden_BTD: torch.Tensor = self.embed_tokens(input_ids)
        context = block_inputs(self.config, hidden_BTD, attention_mask, None, None)
        if self.config.substrate_reinjection:
            context["substrate_BTD"] = hidden_BTD
        for block in self.layers[:num_blocks]:
            hidden_BTD = block(hidden_BTD, **context)
        return hidden_BTD

    def _substrate(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """What every block adds again."""
        if input_ids is None and inputs_embeds is None:
            raise ValueError("a model with substrate_reinjection needs input_ids beside prefix_hidden_states")
        rows_BTD: torch.Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return rows_BTD

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

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model, and beside it the code with which it opens where growtx is not installed."""
        self.config.auto_map = STANDALONE_CLASSES
        super().save_pretrained(save_directory, *args, **kwargs)
        shutil.copyfile(str(STANDALONE_CODE), Path(save_directory) / STANDALONE_CODE.name)

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
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> GrowtxOutput:
        """Logits; with `labels` the loss, and in training the loss alone.

        Args:
            labels: [B, T], aligned with `input_ids` (the shift happens here); -100 is ignored. The loss is computed
                in chunks, because whole logits would be the largest tensor.
            skip_logits: with labels, leave `logits` at `None`. Default: in training mode (transformers' own switch).
            num_items_in_batch: divisor of the summed loss in place of the number of labels (gradient accumulation).
            prefix_hidden_states, first_block: states [B, T, D] that enter block `first_block`, from
                `forward_prefix`; everything below that block is then not used, nor are `input_ids`, but for
                `substrate_reinjection`.
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
        if labels is None or not (self.training if skip_logits is None else skip_logits):
            result.logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        if labels is None:
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


# Models around tensors that exist already: nothing is initialised, nothing copied.


Model = TypeVar("Model", bound=GrowtxPreTrainedModel)


def build_around(
    model_class: Callable[[Any], Model],
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    *,
    like: GrowtxPreTrainedModel,
) -> Model:
    """A model whose parameters are the given tensors themselves (parameters stay the same objects).

    Mode, attention implementation and generation defaults are those of `like`. The tensors of an ensemble's rule
    are not among `tensors`: set the rule afterwards.
    """
    with torch.device("meta"):
        model = model_class(config)
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    assert not unexpected and all(name.startswith("rule.") for name in missing), (missing, unexpected)
    model.generation_config = like.generation_config
    model.set_attn_implementation(attention_of(like.config))
    model.train(like.training)
    return model
