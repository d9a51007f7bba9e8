from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.distributed import DistributedHelper

from growtx.compat.transformers import heads_in_cache, num_cache_blocks
from growtx.exceptions import ConfigError
from growtx.models import (
    GrowtxEnsembleForCausalLM,
    GrowtxForCausalLM,
    GrowtxFusedEnsembleForCausalLM,
    from_members,
    to_fused,
)
from tests.models import generation
from tests.models.ensemble.conftest import make_members

Members = dict[str, GrowtxForCausalLM]


@pytest.fixture
def flat(equal_members: Members) -> GrowtxEnsembleForCausalLM:
    ensemble = from_members(equal_members, rule="weighted-mean")
    with torch.no_grad():
        ensemble.rule.member_weights.copy_(torch.tensor([0.2, 0.7, 0.4]))
    return ensemble


def test_wide_form_has_the_logits_of_the_flat_one(flat: GrowtxEnsembleForCausalLM, tokens_BT: torch.Tensor) -> None:
    fused = to_fused(flat)
    assert (fused(tokens_BT).logits - flat(tokens_BT).logits).abs().max() < 1e-4
    losses = [model(input_ids=tokens_BT, labels=tokens_BT).loss for model in (fused, flat)]
    torch.testing.assert_close(*losses)
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[:, :4] = 0
    ours, theirs = (model(tokens_BT, attention_mask=mask_BT).logits[:, 4:] for model in (fused, flat))
    assert (ours - theirs).abs().max() < 1e-4


def branching(num_trunk_blocks: int, num_blocks: int = 4) -> Members:
    """Members of equal depth whose lowest blocks are the same."""
    members = make_members(num_hidden_layers=num_blocks)
    for model in members.values():
        for block, trunk in zip(model.model.layers[:num_trunk_blocks], members["ru"].model.layers, strict=False):
            block.load_state_dict(trunk.state_dict())
    return members


@pytest.mark.parametrize("num_trunk_blocks", [1, 2, 4])
def test_a_trunk_runs_once_and_the_logits_are_those_of_the_flat_form(
    num_trunk_blocks: int, tokens_BT: torch.Tensor
) -> None:
    flat = from_members(branching(num_trunk_blocks), rule="weighted-mean")
    with torch.no_grad():
        flat.rule.member_weights.copy_(torch.tensor([0.2, 0.7, 0.4]))
    fused = to_fused(flat)
    assert fused.config.num_trunk_layers == num_trunk_blocks
    for ours, theirs in zip(fused.layers[:num_trunk_blocks], flat.layers, strict=False):
        assert all(a is b for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)), "no copy is made"
    seen = [list[torch.Size]() for _ in fused.layers]
    for shapes, layer in zip(seen, fused.layers, strict=True):
        layer.register_forward_pre_hook(lambda _, inputs, shapes=shapes: shapes.append(inputs[0].shape))
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[:, :4] = 0
    for mask, first in ((None, 0), (mask_BT, 4)):
        ours, theirs = (model(tokens_BT, attention_mask=mask).logits[:, first:] for model in (fused, flat))
        assert (ours - theirs).abs().max() < 1e-4
    rows = (*tokens_BT.shape, flat.config.hidden_size)
    assert [shapes[0] for shapes in seen] == [rows if i < num_trunk_blocks else (3, *rows) for i in range(4)]


def test_a_cache_keeps_the_trunk_for_one_member_only(tokens_BT: torch.Tensor) -> None:
    fused = to_fused(from_members(branching(2)))
    cache = fused(tokens_BT).past_key_values
    heads = fused.config.heads_per_member
    assert [layer.keys.shape[1] for layer in cache.layers] == [heads, heads, 3 * heads, 3 * heads]


def test_a_trunk_generates_in_every_way_what_a_plain_loop_does(tokens_BT: torch.Tensor) -> None:
    flat = from_members(branching(2))
    fused = to_fused(flat)
    assert generation.generate(fused, tokens_BT) == generation.generate(flat, tokens_BT)
    generation.check_greedy_agrees_everywhere(fused, tokens_BT)
    generation.check_sampling_and_beams_do_not_depend_on_the_cache(fused, tokens_BT)
    generation.check_continuous_batching(fused, tokens_BT)


def test_a_paged_cache_keeps_the_trunk_for_one_member_only() -> None:
    """As many bytes for a page of positions as it has keys and values, and every member's in a page of its own."""
    config = to_fused(from_members(branching(3))).config
    assert heads_in_cache(config) == config.heads_per_member * (3 + 3)
    batching = ContinuousBatchingConfig(
        page_size=4, num_blocks=num_cache_blocks(config, 10), max_batch_tokens=8, max_memory_percent=0.5
    )
    cache = PagedAttentionCache(config, batching, "cpu", DistributedHelper(None, None), torch.float32)
    (pages,) = cache.cache_allocators.values()
    assert pages.bytes_per_block == 2 * 4 * heads_in_cache(config) * config.head_dim * 4
    assert 10 <= pages.num_blocks <= 11 and cache.max_decode_fast_path_length == 0
    written = torch.arange(4)  # the first page of the first block
    for layer, members in enumerate(config.members_of_layers):
        states = torch.full((4, members * config.heads_per_member, config.head_dim), float(layer + 1))
        pages.update(states, -states, layer, written, written)
    block = cache.cache_tensor[: pages.bytes_per_block].view(torch.float32).view(6, 2, -1)
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0, 4.0])
    assert torch.equal(block[:, 0], expected[:, None].expand(-1, block.shape[2]))
    assert torch.equal(block[:, 1], -block[:, 0])


def test_a_saved_trunk_loads_through_the_auto_classes(tokens_BT: torch.Tensor, tmp_path: Path) -> None:
    fused = to_fused(from_members(branching(2)))
    fused.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.num_trunk_layers == 2 and torch.equal(loaded(tokens_BT).logits, fused(tokens_BT).logits)


def test_blocks_that_only_some_members_share_are_repeated(tokens_BT: torch.Tensor) -> None:
    members = branching(1)
    members["zh"].model.layers[1].load_state_dict(members["ru"].model.layers[1].state_dict())
    flat = from_members(members)
    fused = to_fused(flat)
    assert flat.config.shared_blocks == {0, 1} and fused.config.num_trunk_layers == 1
    assert (fused(tokens_BT).logits - flat(tokens_BT).logits).abs().max() < 1e-4


def test_wide_form_without_head_bias(tokens_BT: torch.Tensor) -> None:
    flat = from_members(make_members(num_hidden_layers=2, lm_head_bias=False))
    assert (to_fused(flat)(tokens_BT).logits - flat(tokens_BT).logits).abs().max() < 1e-4


def test_greedy_sampling_beams_and_continuous_batching_agree(
    flat: GrowtxEnsembleForCausalLM, tokens_BT: torch.Tensor
) -> None:
    fused = to_fused(flat)
    generation.check_greedy_agrees_everywhere(fused, tokens_BT)
    generation.check_sampling_and_beams_do_not_depend_on_the_cache(fused, tokens_BT)
    generation.check_continuous_batching(fused, tokens_BT)


def test_saved_wide_form_loads_through_the_auto_classes(
    flat: GrowtxEnsembleForCausalLM, tokens_BT: torch.Tensor, tmp_path: Path
) -> None:
    fused = to_fused(flat)
    fused.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is GrowtxFusedEnsembleForCausalLM
    assert torch.equal(loaded(tokens_BT).logits, fused(tokens_BT).logits)


def test_unequal_depths_and_other_rules_are_refused(members: Members, flat: GrowtxEnsembleForCausalLM) -> None:
    with pytest.raises(ConfigError, match="3, 4, 3 blocks"):
        to_fused(from_members(members))
    flat.set_rule("mixture")
    with pytest.raises(ConfigError, match="use one of mean, weighted-mean"):
        to_fused(flat)
