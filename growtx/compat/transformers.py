"""What transformers keeps to itself but models, serving and tokenizers need: every private part that is touched.

What transformers' own model files import (`create_causal_mask`, `capture_outputs`, ...) and declare (`_supports_sdpa`,
...) is how one writes a model for it, and stays in `growtx.models`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList, PreTrainedConfig
from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR
from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SEEN = "5.23.0"
_BATCHING = "transformers.generation.continuous_batching"
_MANAGER = f"{_BATCHING}.continuous_api:ContinuousBatchingManager"
_PROCESSOR = f"{_BATCHING}.cb_logits_processors:ContinuousBatchingLogitsProcessor"
_PAGES = f"{_BATCHING}.cache_allocators:FullAttentionCacheAllocator"
_FEWER = "give layers that all members share the pages of one member"
_WHO = "learn which requests are in a step"
TOUCHED = (
    ("transformers:PreTrainedConfig._attn_implementation", "read and set the attention of a model"),
    ("transformers.masking_utils:ALL_MASK_ATTENTION_FUNCTIONS", "register an attention"),
    ("transformers.masking_utils:flash_attention_mask", "register an attention that needs no mask"),
    ('transformers.cache_utils:"layer_class_to_replicate"', "know whether a cache has room for a rule's rows"),
    (f"{_BATCHING}.cache:PagedAttentionCache.update", "keep a rule's rows in the paged cache"),
    (f'{_BATCHING}.cache:"block_table"', "know whether the paged cache is gathered"),
    (f"{_BATCHING}.cache:ATTN_TYPE_TO_ALLOCATOR", _FEWER),
    (f'{_BATCHING}.cache:"bytes_per_block = config.num_hidden_layers *"', _FEWER),
    (f"{_PAGES}.update", _FEWER),
    (f"{_PAGES}.supports_block_table", _FEWER),
    (f"{_PAGES}.rows_per_token", _FEWER),
    (f"{_PAGES}.self.num_key_value_heads", _FEWER),
    (f"{_PAGES}.self.tokens_per_page", _FEWER),
    (f'{_BATCHING}.input_outputs:"cu_seq_lens_q"', "know where the requests of a step lie"),
    (f'{_BATCHING}.input_outputs:"cu_seq_lens_k"', "know where the requests of a step lie"),
    (f'{_BATCHING}.input_outputs:"logits_indices"', "leave out an argument that models of transformers ignore"),
    (f'{_BATCHING}.continuous_api:"_supports_logits_to_keep"', "get no logits but those of next tokens"),
    (f'{_BATCHING}.continuous_api:"_supports_flash_attn"', "let accelerators use flash attention"),
    (f"{_BATCHING}.continuous_api:ProtoPretrainedModel._get_logits_processor", "choose tokens in the model itself"),
    (f"{_MANAGER}.self.logit_processor", _WHO),
    (f"{_BATCHING}.cb_logits_processors:ContinuousBatchingLogitsProcessorList.self.tensors_required", _WHO),
    (f"{_PROCESSOR}.fill_defaults", _WHO),
    (f"{_PROCESSOR}.prepare_tensor_args", _WHO),
    (f'{_BATCHING}.requests:"request_id: str"', _WHO),
    (f'{_BATCHING}.requests:"initial_tokens: list[int]"', "know how long the text of a request is"),
    (f'{_BATCHING}.requests:"generated_tokens: list[int]"', "know how long the text of a request is"),
    (f"{_MANAGER}.self.output_router", "hear of requests that failed"),
    (f"{_BATCHING}.continuous_api:OutputRouter.deliver_batch", "hear of requests that failed"),
    (f"{_MANAGER}.self.batch_processor", "wait until the generation thread is ready"),
    (f"{_MANAGER}.self.background_thread_status", "say why the generation thread ended"),
    (f"{_BATCHING}.continuous_api:BackgroundThreadStatus.self.fatal_error", "say why the generation thread ended"),
    (f'{_BATCHING}.utils:"ContinuousBatchingLogger"', "silence its messages by the name of their logger"),
    ("transformers.convert_slow_tokenizer:TikTokenConverter.load_tiktoken_bpe", "read the ranks of tiktoken files"),
    ("transformers.convert_slow_tokenizer:TikTokenConverter.extract_vocab_merges_from_model", "turn ranks into merges"),
)


# Attention


def attention_of(config: PreTrainedConfig) -> str:
    """The implementation that was chosen; a model can be asked to change it, but not which it is."""
    return config._attn_implementation  # type: ignore[no-any-return]


def set_attention(config: PreTrainedConfig, name: str) -> None:
    """Choose an implementation where there is only a config, which has no method for it."""
    config._attn_implementation = name


def register_attention(name: str, attention: Callable[..., Any]) -> None:
    """Make an implementation known, with no mask for texts without padding.

    Continuous batching allocates a dense mask over all requests unless the name contains "flash".
    """
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, flash_attention_mask)


class PagedCall:
    """The arguments that continuous batching sends down to the attention: its cache, and where each request lies.

    All requests are packed into one row; `ends_of_queries` and `ends_of_keys` are cumulative lengths from 0 on.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> PagedCall | None:
        """None outside of continuous batching."""
        return cls(arguments) if arguments.get("cache") is not None else None

    @property
    def dtype(self) -> torch.dtype:
        """In which keys and values are kept."""
        return self._arguments["cache"].dtype  # type: ignore[no-any-return]

    @property
    def is_gathered(self) -> bool:
        """Whether `update` returns all keys; otherwise the attention itself would have to find them in the pages."""
        return self._arguments.get("block_table") is None

    @property
    def ends_of_queries(self) -> torch.Tensor:
        return self._arguments["cu_seq_lens_q"]  # type: ignore[no-any-return]

    @property
    def ends_of_keys(self) -> torch.Tensor:
        return self._arguments["cu_seq_lens_k"]["full_attention"]  # type: ignore[no-any-return]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values in a layer of the cache; returns those of all positions."""
        arguments = dict(self._arguments)  # the cache writes into them
        keys, values = arguments["cache"].update(keys, values, layer_idx=layer, kwargs=arguments)
        return keys, values


class _MemberPages(FullAttentionCacheAllocator):
    """Pages of a decoder in which some layers have the heads of one member and some those of N (`members_of_layers`).

    Pages are those of one member's heads; a layer with N members takes N pages of every block, which lie side by side.
    A decoder whose config does not say so is kept as transformers does it.
    """

    def __init__(
        self, *, config: PreTrainedConfig, num_key_value_heads: int, layer_indices: list[int], **options: Any
    ) -> None:
        pages: list[Any] = layer_indices
        members = _members_of_layers(config)
        if len(set(members)) > 1:
            num_key_value_heads //= max(members)
            # The first page has the layer's own index, by which the layer's views are found.
            pages = [(layer, n) if n else layer for layer in layer_indices for n in range(members[layer])]
            self.supports_block_table = False  # a kernel's pages have the heads of one layer
        super().__init__(config=config, num_key_value_heads=num_key_value_heads, layer_indices=pages, **options)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        read_index: torch.Tensor,
        write_index: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [T, N H, K] of new tokens, each member's in its page; returns those of all tokens."""
        heads = key_states.shape[1:]
        if heads[0] == self.num_key_value_heads:
            return super().update(key_states, value_states, layer_idx, read_index, write_index)  # type: ignore[no-any-return]
        num_members = heads[0] // self.num_key_value_heads
        page_rows = self.rows_per_token * self.tokens_per_page  # of keys, then of values
        steps_N = torch.arange(0, num_members * page_rows, page_rows, device=write_index.device)
        keys, values = super().update(
            *(states.reshape(-1, self.num_key_value_heads, heads[1]) for states in (key_states, value_states)),
            layer_idx,
            *((index[:, None] + steps_N).flatten() for index in (read_index, write_index)),
        )
        return keys.reshape(-1, *heads), values.reshape(-1, *heads)


ATTN_TYPE_TO_ALLOCATOR.update({FullAttentionCacheAllocator.layer_type: _MemberPages})


def heads_in_cache(config: PreTrainedConfig) -> int:
    """Heads of keys, over all layers, that a cache keeps of every position."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    members = _members_of_layers(config)
    return heads * sum(members) // max(members)


def num_blocks_of(config: PreTrainedConfig, num_pages: int) -> int:
    """The setting `num_blocks` with room for so many pages of positions; it takes every layer for the widest one."""
    members = _members_of_layers(config)
    return -(-num_pages * sum(members) // (len(members) * max(members)))


def _members_of_layers(config: PreTrainedConfig) -> list[int]:
    """How many members' heads each layer has; 1 in models that are no ensemble."""
    return getattr(config, "members_of_layers", None) or [1] * config.num_hidden_layers


def has_layer(cache: Cache, layer: int) -> bool:
    """Whether a cache has this layer or will add it by itself; caches of fixed layers do not say that they are."""
    return cache.layer_class_to_replicate is not None or layer < len(cache.layers)


# Continuous batching. It is made for `PreTrainedModel.generate_batch` and one way of sampling; serving has requests
# with a way of sampling each, and needs to know before a step which requests are in it.


class StepRequest(NamedTuple):
    """A request that gets a token in the coming step; `num_tokens` of its text are there already."""

    name: str
    num_tokens: int


class BatchedModel(nn.Module):
    """What continuous batching asks of a model that is no `PreTrainedModel`, beside `config`, `device` and `dtype`."""

    _supports_flash_attn = True

    def _supports_logits_to_keep(self) -> bool:
        return True

    def _get_logits_processor(self, *_: Any) -> LogitsProcessorList:
        return LogitsProcessorList()  # tokens are chosen in `step`

    @torch.no_grad()
    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **kwargs: Any) -> CausalLMOutput:
        kwargs.pop("logits_indices", None)  # the same as `logits_to_keep`
        return CausalLMOutput(logits=self.step(input_ids, logits_to_keep, **kwargs))

    def step(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Logits [1, C, V] for packed requests [1, T]; the next tokens are their argmax."""
        raise NotImplementedError


class _RequestObserver(ContinuousBatchingLogitsProcessor):
    """Continuous batching tells its logits processors, before a step, which requests are in it."""

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012 - the type that the base class declares
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, before_step: Callable[[list[StepRequest]], None]) -> None:
        self._before_step = before_step

    def fill_defaults(self, arguments: torch.Tensor) -> None:
        arguments.zero_()

    def prepare_tensor_args(self, requests: list[Any]) -> torch.Tensor:
        states = [request.state for request in requests]
        self._before_step(
            [StepRequest(state.request_id, len(state.initial_tokens) + len(state.generated_tokens)) for state in states]
        )
        return torch.zeros(len(requests), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return scores


class _ErrorRouter(OutputRouter):
    """Tokens take a shorter path, and the router's own handlers stay for ever where a consumer leaves: errors only."""

    def __init__(self, on_error: Callable[[str, str], None]) -> None:
        super().__init__()
        self._on_error = on_error

    def deliver(self, output: Any) -> None:
        if output.error is not None:
            self._on_error(output.request_id, output.error)

    def deliver_batch(self, outputs: list[Any]) -> None:
        for output in outputs:
            self.deliver(output)


def batching_manager(
    model: BatchedModel,
    generation: GenerationConfig,
    batching: ContinuousBatchingConfig,
    *,
    before_step: Callable[[list[StepRequest]], None],
    on_error: Callable[[str, str], None],
) -> ContinuousBatchingManager:
    """The manager of one model's requests, which transformers only makes for a `PreTrainedModel`.

    Args:
        before_step: is called in the generation thread with the requests that get a token in the coming step.
        on_error: is called in the generation thread with the name of a request that cannot continue, and why.
    """
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    manager = ContinuousBatchingManager(model, generation, batching)
    manager.logit_processor = ContinuousBatchingLogitsProcessorList(
        LogitsProcessorList([_RequestObserver(before_step)])
    )
    manager.logit_processor.tensors_required = 1  # what `prepare_tensor_args` returns is stored
    manager.output_router = _ErrorRouter(on_error)
    return manager


def is_ready(manager: ContinuousBatchingManager) -> bool:
    """Whether the generation thread has set up what it needs; `is_running` is true from its start on."""
    return manager.batch_processor is not None


def cause_of_end(manager: ContinuousBatchingManager) -> Exception | None:
    """Why the generation thread ended."""
    return manager.background_thread_status.fatal_error  # type: ignore[no-any-return]


# Tokenizers


def ranks_to_merges(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-level BPE from tiktoken's ranks; transformers itself takes none but files."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return ranks

    return Converter().extract_vocab_merges_from_model("")  # type: ignore[no-any-return]
