"""Freezing: exactly what a stage names trains, and the hash of the rest shows whether it moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from growtx.growth.assembly import build_model, build_stage_model
from growtx.growth.freezing import frozen_parameters, hash_frozen, prepare_for_stage
from growtx.growth.lora import base_model
from growtx.growth.plan import Stage
from growtx.models.causal_lm import GrowtxForCausalLM
from tests import tiny


def model(num_blocks: int = 3) -> GrowtxForCausalLM:
    (stage,) = tiny.stages(stages=[{"add": num_blocks}])
    return build_stage_model(tiny.config(num_blocks), stage, None, tiny.substrate(), seed=0)


def last_stage(**stage: Any) -> Stage:
    """A stage on top of two blocks."""
    return tiny.stages(stages=[{"add": 2}, stage])[1]


def trainable_parts(wrapped: nn.Module) -> set[str]:
    """Substrate, blocks by number, adapters by block, norm, head."""
    parts = set()
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            path = name.removeprefix("base_model.model.").removeprefix("model.").split(".")
            part = ".".join(path[:2]) if path[0] == "layers" else path[0]
            parts.add(part + (" adapter" if "lora_" in name else ""))
    return parts


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"add": 1}, {"layers.2", "norm", "lm_head"}),
        ({"add": 1, "active": 2}, {"layers.1", "layers.2", "norm", "lm_head"}),
        ({"add": 1, "head": False}, {"layers.2"}),
        ({"add": 1, "train_substrate": True}, {"embed_tokens", "layers.2", "norm", "lm_head"}),
        (
            {"add": 1, "lora": {"rank": 1}},
            {"layers.0 adapter", "layers.1 adapter", "layers.2", "norm", "lm_head"},
        ),
        ({"add": 1, "active": 2, "lora": {"rank": 1}, "head": False}, {"layers.0 adapter", "layers.1", "layers.2"}),
        ({"add": 1, "insert": "middle"}, {"layers.1", "norm", "lm_head"}),
    ],
)
def test_exactly_what_the_stage_names_trains(stage: dict[str, Any], expected: set[str]) -> None:
    assert trainable_parts(prepare_for_stage(model(), last_stage(**stage), seed=0)) == expected


def test_adapters_are_put_on_the_asked_projections_of_frozen_blocks_only() -> None:
    stage = last_stage(add=1, lora={"rank": 1, "targets": ["q_proj", "down_proj"]})
    names = [name for name, _ in prepare_for_stage(model(), stage, seed=0).named_parameters() if "lora_A" in name]
    assert {
        name.removeprefix("base_model.model.model.layers.").removesuffix(".lora_A.default.weight") for name in names
    } == {f"{block}.{projection}" for block in (0, 1) for projection in ("self_attn.q_proj", "mlp.down_proj")}


def test_the_newest_block_of_a_lora_phase_trains_whole_although_peft_freezes_everything() -> None:
    wrapped = prepare_for_stage(model(), last_stage(add=1, lora={"rank": 1}), seed=0)
    newest = base_model(wrapped).model.layers[2]
    assert all(parameter.requires_grad for parameter in newest.parameters())
    assert not any("lora" in name for name, _ in newest.named_parameters())


def test_only_what_trains_gets_a_gradient() -> None:
    wrapped = prepare_for_stage(model(), last_stage(add=1, active=1, lora={"rank": 1}), seed=0)
    wrapped(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    for name, parameter in wrapped.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_frozen_tensors_have_the_same_names_and_hash_with_and_without_adapters() -> None:
    plain = prepare_for_stage(model(), last_stage(add=1), seed=0)
    adapted = prepare_for_stage(model(), last_stage(add=1, lora={"rank": 2}), seed=0)
    assert [name for name, _ in frozen_parameters(plain)] == [name for name, _ in frozen_parameters(adapted)]
    assert hash_frozen(frozen_parameters(plain)) == hash_frozen(frozen_parameters(adapted))
    assert hash_frozen(frozen_parameters(plain))[1] == 1 + 2 * 12  # the substrate and twelve tensors of each block


def test_training_does_not_change_the_hash_and_the_smallest_move_of_a_frozen_tensor_does() -> None:
    wrapped = prepare_for_stage(model(), last_stage(add=1, lora={"rank": 2}), seed=0)
    before = hash_frozen(frozen_parameters(wrapped))
    tiny.disturb(wrapped)
    assert hash_frozen(frozen_parameters(wrapped)) == before
    with torch.no_grad():
        weight = base_model(wrapped).model.embed_tokens.weight
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(100.0))
    assert hash_frozen(frozen_parameters(wrapped))[0] != before[0]


def test_two_frozen_tensors_that_changed_places_do_not_hash_the_same() -> None:
    first, second = torch.zeros(3), torch.ones(3)
    assert hash_frozen(iter([("a", first), ("b", second)])) != hash_frozen(iter([("a", second), ("b", first)]))
    assert hash_frozen(iter([("a", first), ("b", second)])) == hash_frozen(iter([("b", second), ("a", first)]))


def test_a_stage_may_freeze_what_the_stage_before_trained() -> None:
    once = model()
    prepare_for_stage(once, last_stage(add=1, active=3, train_substrate=True), seed=0)
    assert trainable_parts(prepare_for_stage(once, last_stage(add=1, head=False), seed=0)) == {"layers.2"}
    assert build_model(once.config, once.state_dict()) is not once
