"""A stage's FLOPs are those that torch counts while its step runs: products with weights to the last one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.growth import growing_flops
from growtx.config import build_config
from growtx.growth.assembly import build_model, build_stage_model
from growtx.growth.flops import num_blocks_with_gradients, optimizer_flops, stage_flops
from growtx.growth.freezing import checkpoint_activations, prepare_for_stage
from growtx.growth.lora import base_model
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.growth.scaling import plan_cost
from growtx.models.counting import monolithic_flops
from growtx.train.muon import orthogonalized
from tests import tiny

BATCH = 2
LORA = {"rank": 3, "targets": ["q_proj", "k_proj", "v_proj", "up_proj"]}
STAGES: dict[str, list[dict[str, Any]]] = {
    "a first block": [{"add": 1}],
    "a first block with its substrate": [{"add": 1, "train_substrate": True}],
    "one block on two": [{"add": 2}, {"add": 1}],
    "a window": [{"add": 2}, {"add": 1, "active": 2}],
    "without the head": [{"add": 2}, {"add": 1, "head": False}],
    "the head alone": [{"add": 2}, {"add": 0}],
    "a block with adapters below": [{"add": 2}, {"add": 1, "lora": LORA}],
    "adapters alone": [{"add": 2}, {"add": 0, "head": False, "lora": {"rank": 2}}],
    "a block amid four": [{"add": 4}, {"add": 1, "insert": "middle"}],
}


def last_stage(name: str) -> Stage:
    return tiny.stages(stages=STAGES[name])[-1]


def counted(stage: Stage, *, cached: bool = False, checkpointing: bool = False) -> tuple[float, float]:
    """FLOPs per token with weights, and with attention scores, as torch counts them in a step of the built model."""
    config = tiny.config(stage.num_blocks)
    config._attn_implementation = "eager"  # whose products are counted one by one
    below = stage.model_copy(update={"num_blocks_before": 0, "add": stage.num_blocks, "insert": "top", "lora": None})
    state = build_stage_model(config, below, None, tiny.substrate(), seed=0).state_dict()
    model = prepare_for_stage(build_model(config, state), stage, seed=0).train()
    if checkpointing:
        checkpoint_activations(model)
    batch: dict[str, Any] = {"labels": tiny.tokens(BATCH)}
    if cached:
        states_BTD = base_model(model).forward_prefix(batch["labels"], stage.num_prefix)
        batch |= {"prefix_hidden_states": states_BTD, "first_block": stage.num_prefix}
    else:
        batch["input_ids"] = batch["labels"]
    in_place = {torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(**batch).loss.backward()
    by_operator = {str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()}
    attention = by_operator.pop("aten.bmm", 0)
    num_tokens = BATCH * tiny.CONTEXT_LENGTH
    return sum(by_operator.values()) / num_tokens, attention / num_tokens


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_a_step_costs_what_torch_counts(name: str, checkpointing: bool) -> None:
    stage = last_stage(name)
    flops = stage_flops(tiny.config(9), stage, activation_checkpointing=checkpointing)
    weights, attention = counted(stage, checkpointing=checkpointing)
    # An adapter of the last product lets a little more of a checkpointed block run again.
    assert flops.weights == (pytest.approx(weights, rel=0.1) if checkpointing and stage.lora else weights)
    # Torch counts all T positions for every query, the mask leaves (T + 1) / 2 of them.
    assert flops.attention == pytest.approx(attention * (tiny.CONTEXT_LENGTH + 1) / 2 / tiny.CONTEXT_LENGTH)


def test_a_cached_prefix_costs_nothing() -> None:
    stage = last_stage("one block on two")
    weights, _ = counted(stage, cached=True)
    assert stage_flops(tiny.config(9), stage, prefix_cached=True).weights == weights
    deeper = tiny.stages(stages=[{"add": 8}, {"add": 1}])[-1]
    assert stage_flops(tiny.config(9), deeper, prefix_cached=True).weights == weights


def test_dense_stages_cost_what_the_published_formulas_say() -> None:
    config, length = tiny.config(3), tiny.CONTEXT_LENGTH
    grown = stage_flops(config, last_stage("one block on two"))
    assert grown.total == growing_flops(config, length, num_new_blocks=1).total
    (whole,) = tiny.stages(stages=[{"add": 3}])
    assert stage_flops(config, whole).total == monolithic_flops(config, length).total


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a window", 2), ("adapters alone", 2), ("the head alone", 0), ("a block amid four", 3)],
)
def test_gradients_pass_through_what_trains_and_what_lies_above_it(name: str, expected: int) -> None:
    assert num_blocks_with_gradients(last_stage(name)) == expected


def test_the_optimizer_costs_what_torch_counts() -> None:
    muon = tiny.stages(train={"steps": 4, "optimizer": "muon"}, stages=[{"add": 2}, {"add": 1}])[-1]
    model = build_stage_model(tiny.config(1), tiny.stages(stages=[{"add": 1}])[0], None, tiny.substrate(), seed=0)
    matrices = [parameter.detach() for parameter in model.model.layers[0].parameters() if parameter.dim() == 2]
    with FlopCounterMode(display=False) as counter:
        for matrix in matrices:
            orthogonalized(matrix)
    assert optimizer_flops(tiny.config(3), muon) == counter.get_total_flops()
    assert optimizer_flops(tiny.config(3), last_stage("one block on two")) == 0


def test_a_plan_with_muon_pays_for_it_in_every_step() -> None:
    plans = [
        build_config(PlanConfig, {"train": {"steps": 4, "optimizer": optimizer}, "grow": {"blocks": 2}})
        for optimizer in ("adamw", "muon")
    ]
    costs = [plan_cost(tiny.config(2), resolve(plan), "flops", tokens_per_step=64) for plan in plans]
    assert costs[1] - costs[0] == 8 * optimizer_flops(tiny.config(2), resolve(plans[1])[0])
