"""What transformers keeps to itself but models, serving and tokenizers need: every private part that is touched.

What transformers' own model files import (`create_causal_mask`, `capture_outputs`, ...) and declare (`_supports_sdpa`,
...) is how one writes a model for it, and stays in `growtx.models`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList, PreTrainedConfig
from transformers.generation.continuous_batching import continuous_api
from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR, PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.cache_allocators.cache_allocator import compute_block_hash
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SEEN = "5.23.0"
_BATCHING = "transformers.generation.continuous_batching"
_MANAGER = f"{_BATCHING}.continuous_api:ContinuousBatchingManager"
_ALLOCATOR = f"{_BATCHING}.cache_allocators.cache_allocator"
_PAGES = f"{_BATCHING}.cache_allocators:FullAttentionCacheAllocator"
_FEWER = "give layers that all members share the pages of one member"
_WHO = "learn which requests are in a step"
_DEPTHS = "share pages between requests of several depths"
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
    (f'{_BATCHING}.input_outputs:"max_length_q"', "let requests leave in the middle of a step"),
    (f'{_BATCHING}.input_outputs:"max_length_k"', "let requests leave in the middle of a step"),
    (f'{_BATCHING}.input_outputs:"read_index"', "let requests leave in the middle of a step"),
    (f'{_BATCHING}.input_outputs:"write_index"', "let requests leave in the middle of a step"),
    (f'{_BATCHING}.input_outputs:"logits_indices"', "leave out an argument that models of transformers ignore"),
    (f'{_BATCHING}.continuous_api:"_supports_logits_to_keep"', "get no logits but those of next tokens"),
    (f'{_BATCHING}.continuous_api:"_supports_flash_attn"', "let accelerators use flash attention"),
    (f"{_BATCHING}.continuous_api:ProtoPretrainedModel._get_logits_processor", "choose tokens in the model itself"),
    (f"{_MANAGER}.self.logit_processor", _WHO),
    (f"{_BATCHING}.cb_logits_processors:ContinuousBatchingLogitsProcessorList.prepare_tensor_args", _WHO),
    (f'{_BATCHING}.requests:"has_new_token: bool"', _WHO),
    (f"{_BATCHING}.continuous_api:PagedAttentionCache", _DEPTHS),
    (f"{_BATCHING}.cache:PagedAttentionCache.search_prefix_match", _DEPTHS),
    (f"{_BATCHING}.cache:PagedAttentionCache.self.cache_allocators", _DEPTHS),
    (f"{_ALLOCATOR}:CacheAllocator.match_prefix_blocks", _DEPTHS),
    (f"{_ALLOCATOR}:CacheAllocator.mark_complete_blocks", _DEPTHS),
    (f"{_ALLOCATOR}:CacheAllocator.self.ledger", _DEPTHS),
    (f"{_ALLOCATOR}:BlockLedger.self.hash_to_block", _DEPTHS),
    (f"{_ALLOCATOR}:compute_block_hash", _DEPTHS),
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

    def positions_of(self, are_meant: Sequence[bool]) -> torch.Tensor:
        """Where the new tokens of some of the step's requests lie in its row, [T']."""
        return self._mask(are_meant).repeat_interleave(self.ends_of_queries.diff()).nonzero()[:, 0]

    def of_requests(self, are_meant: Sequence[bool]) -> dict[str, Any]:
        """The arguments of a step that only some of the requests are in."""
        given, stays_R = self._arguments, self._mask(are_meant)
        queries_R, keys_R = self.ends_of_queries.diff(), self.ends_of_keys.diff()
        some = dict(given)
        some["cu_seq_lens_q"] = _ends(queries_R[stays_R])
        some["cu_seq_lens_k"] = {name: _ends(keys_R[stays_R]) for name in given["cu_seq_lens_k"]}
        some["max_length_q"] = int(queries_R[stays_R].max())
        some["max_length_k"] = {name: int(keys_R[stays_R].max()) for name in given["max_length_k"]}
        if given.get("block_table") is not None:
            some["block_table"] = given["block_table"][:, stays_R]
        else:
            is_kept_T, is_kept_S = stays_R.repeat_interleave(queries_R), stays_R.repeat_interleave(keys_R)
            some["write_index"] = [index[is_kept_T] for index in given["write_index"]]
            # Empty where no request of the step has keys of earlier steps.
            some["read_index"] = [index[is_kept_S] if len(index) else index for index in given["read_index"]]
        return some

    def _mask(self, are_meant: Sequence[bool]) -> torch.Tensor:
        return torch.tensor(are_meant, device=self.ends_of_queries.device)


def _ends(lengths_R: torch.Tensor) -> torch.Tensor:
    return F.pad(lengths_R.cumsum(0, dtype=torch.int32), (1, 0))


# Pages that requests share. A request that leaves the blocks early has no keys above, so who runs through more blocks
# must not take its pages; the other way round one may. The number of blocks stands in a request's name, because the
# cache hears of nothing else.

_LARGEST_VOCABULARY = 2**21  # tokens and depths are hashed as 32-bit numbers


def request_name(name: str, num_blocks: int) -> str:
    """What a request is called in continuous batching."""
    return f"{name}@{num_blocks}"


def _num_blocks_of_request(name: str) -> int:
    """0 for names that others gave, as in `generate_batch`: there all requests are equally deep."""
    _, at, number = name.rpartition("@")
    return int(number) if at and number.isdecimal() else 0


class _Cache(PagedAttentionCache):
    """Tells its pages how deep the request is that looks for a known beginning."""

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        for pages in self.cache_allocators.values():
            pages.num_blocks_wanted = _num_blocks_of_request(request_id)
        return super().search_prefix_match(request_id, prompt_ids)  # type: ignore[no-any-return]


vars(continuous_api).update(PagedAttentionCache=_Cache)


class _MemberPages(FullAttentionCacheAllocator):
    """Pages of a decoder in which some layers have the heads of one member and some those of N (`members_of_layers`).

    Pages are those of one member's heads; a layer with N members takes N pages of every block, which lie side by side.
    A decoder whose config does not say so is kept as transformers does it. Beside its tokens, a page is known by the
    number of blocks that its request ran through.
    """

    num_blocks_wanted = 0

    def __init__(
        self, *, config: PreTrainedConfig, num_key_value_heads: int, layer_indices: list[int], **options: Any
    ) -> None:
        pages: list[Any] = layer_indices
        members, most = _members_of_layers(config), _num_members(config)
        if min(members) < most:
            num_key_value_heads //= most
            # The first page has the layer's own index, by which the layer's views are found.
            pages = [(layer, n) if n else layer for layer in layer_indices for n in range(members[layer])]
            self.supports_block_table = False  # a kernel's pages have the heads of one layer
        self._known_depths: set[int] = set()
        super().__init__(config=config, num_key_value_heads=num_key_value_heads, layer_indices=pages, **options)

    def mark_complete_blocks(self, request_id: str, token_ids: list[int], new_new_blocks: int) -> None:
        """Make a request's pages known that are full now."""
        num_blocks = _num_blocks_of_request(request_id)
        self._known_depths.add(num_blocks)
        super().mark_complete_blocks(request_id, _of_depth(token_ids, num_blocks), new_new_blocks)

    def match_prefix_blocks(self, prompt_ids: list[int]) -> list[int]:
        """The pages that hold the beginning of a prompt, of requests at least as deep as the one that asks."""
        found: list[int] = []
        deep_enough = sorted(depth for depth in self._known_depths if depth >= self.num_blocks_wanted)
        last_hash: int | None = None
        for start in range(
            0, (len(prompt_ids) - 1) // self.tokens_per_page * self.tokens_per_page, self.tokens_per_page
        ):
            tokens = prompt_ids[start : start + self.tokens_per_page]
            hashes = [compute_block_hash(last_hash, _of_depth(tokens, depth)) for depth in deep_enough]
            last_hash = next((hash_ for hash_ in hashes if hash_ in self.ledger.hash_to_block), None)
            if last_hash is None:
                break
            found.append(self.ledger.hash_to_block[last_hash])
        return found

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


def _of_depth(token_ids: list[int], num_blocks: int) -> list[int]:
    """Tokens as a page's hash sees them, so that pages of unequal depths are unequal."""
    return [token - num_blocks * _LARGEST_VOCABULARY for token in token_ids]


ATTN_TYPE_TO_ALLOCATOR.update({FullAttentionCacheAllocator.layer_type: _MemberPages})


def heads_in_cache(config: PreTrainedConfig) -> int:
    """Heads of keys, over all layers, that a cache keeps of every position."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    members = _members_of_layers(config)
    return heads * sum(members) // _num_members(config)


def num_cache_blocks(config: PreTrainedConfig, num_pages: int) -> int:
    """The setting `num_blocks` with room for so many pages of positions; it takes every layer for the widest one."""
    members = _members_of_layers(config)
    return -(-num_pages * sum(members) // (len(members) * _num_members(config)))


def _members_of_layers(config: PreTrainedConfig) -> list[int]:
    """How many members' heads each layer has; 1 in models that are no fused ensemble."""
    return getattr(config, "members_of_layers", None) or [1] * config.num_hidden_layers


def _num_members(config: PreTrainedConfig) -> int:
    """How many members' heads `num_attention_heads` counts; where all layers are the trunk, none has as many."""
    return config.num_members if hasattr(config, "members_of_layers") else 1


def has_layer(cache: Cache, layer: int) -> bool:
    """Whether a cache has this layer or will add it by itself; caches of fixed layers do not say that they are."""
    return cache.layer_class_to_replicate is not None or layer < len(cache.layers)


# Continuous batching. It is made for `PreTrainedModel.generate_batch` and one way of sampling; serving has requests
# with a way of sampling each, and needs to know before a step which requests are in it.


class StepRequest(NamedTuple):
    """A request in the coming step; `num_tokens` of its text are there already.

    A long prompt is read over several steps, of which only the last one gives a token.
    """

    name: str
    num_tokens: int
    gets_token: bool

    @property
    def num_blocks(self) -> int:
        return _num_blocks_of_request(self.name)


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


class _Observer(ContinuousBatchingLogitsProcessorList):
    """Continuous batching tells its logits processors, before a step, which requests are in it; there are none."""

    def __init__(self, before_step: Callable[[list[StepRequest]], None]) -> None:
        super().__init__(LogitsProcessorList())
        self._before_step = before_step

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        self._before_step([_step_request(request.state, request.has_new_token) for request in requests_in_batch])
        return arg_storage


def _step_request(state: Any, gets_token: bool) -> StepRequest:
    return StepRequest(state.request_id, len(state.initial_tokens) + len(state.generated_tokens), gets_token)


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
        before_step: is called in the generation thread with the requests of the coming step, in their order.
        on_error: is called in the generation thread with the name of a request that cannot continue, and why.
    """
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    manager = ContinuousBatchingManager(model, generation, batching)
    manager.logit_processor = _Observer(before_step)
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
