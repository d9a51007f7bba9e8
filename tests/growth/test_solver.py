"""Proposed plans reach their depth, keep to their limits exactly, and say what would fit where nothing does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtx.exceptions import BudgetError
from growtx.growth.flops import active_parameters
from growtx.growth.forecast import Placement, forecast
from growtx.growth.plan import LoraConfig, Stage, resolve
from growtx.growth.solver import Proposal, SolverLimits, propose
from growtx.models.counting import num_params
from tests import tiny

CONFIG = tiny.config()
COUNTS = num_params(CONFIG)
HEAD, BLOCK = COUNTS.head + COUNTS.final_norm, COUNTS.per_block
ONE = Placement(num_workers=1, zero_stage=1, micro_batch=4, bf16=False)


def proposal(num_blocks: int = 6, *, placement: Placement = ONE, **changes: Any) -> Proposal:
    limits = SolverLimits(changes.pop("budget", None), changes.pop("memory", None))
    common = {"train": {"steps": 4}, "tokens_per_step": 64, "lora": LoraConfig(), **changes}
    return propose(CONFIG, num_blocks, limits, placement, **common)


def stages(**changes: Any) -> tuple[Stage, ...]:
    return resolve(proposal(**changes).plan)


@settings(max_examples=60, deadline=None)
@given(num_blocks=st.integers(1, 9), budget=st.integers(max(HEAD, BLOCK), HEAD + 12 * BLOCK))
def test_any_budget_is_kept_and_any_depth_reached(num_blocks: int, budget: int) -> None:
    found = stages(num_blocks=num_blocks, budget=budget)
    assert found[-1].num_blocks == num_blocks
    assert max(active_parameters(CONFIG, stage) for stage in found) <= budget
    assert any(stage.head for stage in found), "a head that never trains predicts nothing"


def test_as_many_blocks_as_fit_train_beside_the_head() -> None:
    exact = [(stage.add, stage.head) for stage in stages(budget=HEAD + 2 * BLOCK, lora=None)]
    assert exact == [(2, True)] * 3
    assert [stage.add for stage in stages(budget=HEAD + 2 * BLOCK - 1, lora=None)] == [1] * 6


def test_adapters_spend_the_budget_to_less_than_one_rank() -> None:
    budget = HEAD + 2 * BLOCK
    last = stages(budget=budget)[-1]
    assert last.lora is not None and (last.add, last.num_active, last.head) == (0, 0, True)
    assert last.lora.alpha / last.lora.rank == LoraConfig().alpha / LoraConfig().rank
    one_more = last.model_copy(update={"lora": last.lora.model_copy(update={"rank": last.lora.rank + 1})})
    assert active_parameters(CONFIG, last) <= budget < active_parameters(CONFIG, one_more)


def test_head_and_blocks_that_do_not_fit_together_train_in_turn() -> None:
    found = stages(num_blocks=2, budget=max(HEAD, 2 * BLOCK - 1), lora=None)
    assert max(HEAD, 2 * BLOCK - 1) < HEAD + BLOCK
    assert [(stage.name, stage.add, stage.head) for stage in found] == [
        ("depth-1", 1, False),
        ("head-1", 0, True),
        ("depth-2", 1, False),
        ("head-2", 0, True),
    ]


def test_a_budget_below_the_largest_part_is_refused_with_what_suffices() -> None:
    with pytest.raises(BudgetError) as caught:
        proposal(budget=max(HEAD, BLOCK) - 1)
    assert f"Give at least {max(HEAD, BLOCK)} to train them in turn, {HEAD + BLOCK} to train" in str(caught.value)
    assert stages(budget=max(HEAD, BLOCK), lora=None)[-1].num_blocks == 6


def needs(found: Proposal) -> int:
    rows = forecast(CONFIG, resolve(found.plan), found.placement, tokens_per_step=64)
    return max(row.memory.total for row in rows)


def test_memory_decides_how_many_blocks_are_added_at_a_time() -> None:
    whole = proposal(memory=10**9)
    assert [stage.add for stage in resolve(whole.plan)] == [6, 0]
    less = proposal(memory=needs(proposal(memory=10**9, lora=None)) - 1, lora=None)
    assert resolve(less.plan)[0].add == 5 and less.placement == ONE


def test_where_one_block_does_not_fit_cheaper_placements_are_proposed() -> None:
    one_by_one = proposal(memory=10**9, budget=HEAD + BLOCK, lora=None)
    tight = proposal(memory=needs(one_by_one) - 1, lora=None)
    assert tight.placement != ONE and needs(tight) < needs(one_by_one)


def test_a_memory_that_nothing_fits_is_refused_with_what_would() -> None:
    with pytest.raises(BudgetError, match="one block at a time needs") as caught:
        proposal(memory=1000)
    enough = float(caught.value.remedy.split()[1])
    assert needs(proposal(memory=round(enough * 2**30))) <= enough * 2**30
