"""The budget: counted before training exactly as the model will count it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growtx.exceptions import BudgetError
from growtx.growth.assembly import build_model, build_stage_model
from growtx.growth.flops import active_parameters, check_budget, count_trainable
from growtx.growth.freezing import prepare_for_stage
from growtx.growth.lora import num_adapter_parameters
from growtx.growth.plan import LINEAR_TARGETS, BudgetConfig, LoraConfig, Stage
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import num_params
from tests import tiny


def trainable(config: GrowtxConfig, stage: Stage) -> int:
    """Parameters of the model that the stage would train, counted by asking each whether it requires gradients."""
    below = stage.model_copy(update={"num_blocks_before": 0, "add": stage.num_blocks, "lora": None})
    substrate = torch.zeros(config.vocab_size, config.embedding_width)
    state = build_stage_model(config, below, None, substrate, seed=0).state_dict()
    return count_trainable(prepare_for_stage(build_model(config, state), stage, seed=0))


SHAPES = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(2, 60),
        "num_attention_heads": st.integers(1, 3),
        "lm_head_bias": st.booleans(),
        "substrate_expansion": st.sampled_from(["none", "tile"]),
    }
)
STAGES = st.fixed_dictionaries(
    {
        "add": st.integers(0, 2),
        "active": st.integers(2, 3),
        "head": st.booleans(),
        "train_substrate": st.booleans(),
        "lora": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {
                    "rank": st.integers(1, 3),
                    "targets": st.lists(st.sampled_from(LINEAR_TARGETS), min_size=1, unique=True),
                }
            ),
        ),
    }
)


@settings(max_examples=12, deadline=None)
@given(shape=SHAPES, last=STAGES)
def test_the_count_before_training_is_that_of_the_model(shape: dict[str, Any], last: dict[str, Any]) -> None:
    width = 4 * shape["num_attention_heads"]
    substrate_width = width if shape["substrate_expansion"] == "none" else width // 2
    stage = tiny.stages(stages=[{"add": 2 + last["active"] - last["add"]}, last])[1]
    config = tiny.config(stage.num_blocks, **shape, hidden_size=width, substrate_width=substrate_width)
    assert trainable(config, stage) == active_parameters(config, stage)


def test_every_stage_of_a_plan_with_lora_is_counted_exactly() -> None:
    plan = {"blocks": 3, "active": 2, "lora_from": 3, "lora": {"rank": 3, "targets": ["q_proj", "down_proj"]}}
    for stage in tiny.stages(grow=plan):
        assert trainable(tiny.config(stage.num_blocks), stage) == active_parameters(tiny.config(9), stage)


def test_the_published_active_parameters_come_out() -> None:
    study = GrowtxConfig(vocab_size=65_536, hidden_size=1024, num_hidden_layers=9, num_attention_heads=32)
    counts = [active_parameters(study, stage) for stage in tiny.stages(grow={"blocks": 9, "per_stage": 3})]
    assert [f"{count / 1e6:.1f}M" for count in counts] == ["105.0M"] * 3
    (whole,) = tiny.stages(grow={"blocks": 9, "per_stage": 9})
    assert f"{active_parameters(study, whole) / 1e6:.1f}M" == "180.5M"
    assert active_parameters(study, whole.model_copy(update={"train_substrate": True})) == num_params(study).total
    abs_bvv = GrowtxConfig(vocab_size=131_072, hidden_size=4096, num_hidden_layers=6, num_attention_heads=32)
    assert f"{active_parameters(abs_bvv, tiny.stages(grow={'blocks': 1})[0]) / 1e9:.2f}B" == "0.74B"


def test_adapters_on_all_projections_cost_18_d_r_a_block() -> None:
    assert num_adapter_parameters(LoraConfig(rank=341), 1024, 4096) == 18 * 1024 * 341
    study = num_params(GrowtxConfig(vocab_size=65_536, hidden_size=1024, num_hidden_layers=9, num_attention_heads=32))
    assert 6 * num_adapter_parameters(LoraConfig(rank=341), 1024, 4096) == pytest.approx(3 * study.per_block, rel=0.002)


def budget_error(limit: int, **plan: object) -> BudgetError:
    with pytest.raises(BudgetError) as caught:
        check_budget(tiny.config(), tiny.stages(**plan), BudgetConfig(active_parameters=limit))
    return caught.value


COUNTS = num_params(tiny.config())
HEAD = COUNTS.head + COUNTS.final_norm
BLOCK = COUNTS.per_block


def test_a_stage_over_the_budget_is_refused_with_what_it_needs_and_what_fits() -> None:
    error = budget_error(HEAD + 2 * BLOCK, stages=[{"add": 2}, {"add": 3}])
    assert str(error) == (
        f"plan.budget.active_parameters={HEAD + 2 * BLOCK}: stage 2 (depth-5) would train {HEAD + 3 * BLOCK} "
        f"parameters, {BLOCK} too many. Raise the budget, or let at most 2 blocks be active."
    )
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("limit", "plan", "remedy"),
    [
        (HEAD - 1, {"grow": {"blocks": 1}}, f"The LM head alone has {COUNTS.head}: raise the budget"),
        (HEAD + 1, {"grow": {"blocks": 1}}, "Raise the budget"),
        (HEAD + BLOCK, {"grow": {"blocks": 2, "lora_from": 2}}, "Lower lora.rank or active, or raise the budget"),
        (HEAD + BLOCK, {"stages": [{"train_substrate": True}]}, f"The substrate has {COUNTS.embedding}: raise"),
        (BLOCK - 1, {"stages": [{"head": False}]}, "Raise the budget"),
    ],
)
def test_the_remedy_is_one_that_helps(limit: int, plan: dict[str, object], remedy: str) -> None:
    assert budget_error(limit, **plan).remedy.startswith(remedy)


def test_a_plan_within_its_budget_or_without_one_passes() -> None:
    stages = tiny.stages(grow={"blocks": 3})
    check_budget(tiny.config(), stages, BudgetConfig(active_parameters=HEAD + BLOCK))
    check_budget(tiny.config(), stages, BudgetConfig())
