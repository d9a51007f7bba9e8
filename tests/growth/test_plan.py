"""Plans: what a user writes becomes the stages that are meant, and what cannot be is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.growth.plan import LINEAR_TARGETS, LoraConfig, PlanConfig, Stage, StageTraining, resolve

TRAIN = {"steps": 10}


def stages(tree: dict[str, Any], **before: int) -> tuple[Stage, ...]:
    return resolve(build_config(PlanConfig, {"train": TRAIN, **tree}), **before)


def shape(stages: tuple[Stage, ...]) -> list[tuple[int, int, int]]:
    """Blocks, active blocks, LoRA rank of each stage."""
    return [(stage.num_blocks, stage.num_active, stage.lora.rank if stage.lora else 0) for stage in stages]


def test_the_shorthand_adds_blocks_one_by_one() -> None:
    found = stages({"grow": {"blocks": 3}})
    assert shape(found) == [(1, 1, 0), (2, 1, 0), (3, 1, 0)]
    assert [(stage.index, stage.name, stage.num_blocks_before, stage.add) for stage in found] == [
        (1, "depth-1", 0, 1),
        (2, "depth-2", 1, 1),
        (3, "depth-3", 2, 1),
    ]


@pytest.mark.parametrize(
    ("grow", "expected"),
    [
        ({"blocks": 9, "per_stage": 3}, [(3, 3, 0), (6, 3, 0), (9, 3, 0)]),
        ({"blocks": 5, "per_stage": 2}, [(2, 2, 0), (4, 2, 0), (5, 1, 0)]),
        ({"blocks": 2, "per_stage": 5}, [(2, 2, 0)]),
        ({"blocks": 4, "active": 3}, [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 3, 0)]),
    ],
)
def test_the_shorthand_takes_steps_of_any_size_and_a_window_of_active_blocks(
    grow: dict[str, Any], expected: list[tuple[int, int, int]]
) -> None:
    assert shape(stages({"grow": grow})) == expected


def test_lora_joins_the_stages_from_the_asked_depth_on() -> None:
    grow = {"blocks": 6, "active": 3, "lora_from": 5, "lora": {"rank": 4}}
    assert shape(stages({"grow": grow})) == [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 3, 0), (5, 3, 4), (6, 3, 4)]


def test_interleaved_lora_phases_follow_their_depth_and_train_no_block() -> None:
    found = stages({"grow": {"blocks": 3, "lora_from": 2, "lora_phase": "interleaved", "lora": {"rank": 4}}})
    assert shape(found) == [(1, 1, 0), (2, 1, 0), (2, 0, 4), (3, 1, 0), (3, 0, 4)]
    assert [stage.name for stage in found] == ["depth-1", "depth-2", "lora-2", "depth-3", "lora-3"]
    assert [stage.index for stage in found] == [1, 2, 3, 4, 5]
    assert [stage.num_frozen for stage in found] == [0, 1, 2, 2, 3]


def test_a_learned_substrate_trains_in_the_first_stage_and_in_the_control() -> None:
    grow = {"blocks": 3, "train_substrate": True}
    assert [stage.train_substrate for stage in stages({"grow": grow})] == [True, False, False]
    assert [stage.train_substrate for stage in stages({"grow": grow, "mode": "monolithic"})] == [True]


def test_there_is_nothing_to_adapt_in_a_first_stage() -> None:
    assert shape(stages({"grow": {"blocks": 2, "lora_from": 1}})) == [(1, 1, 0), (2, 1, 16)]


@settings(max_examples=50, deadline=None)
@given(
    blocks=st.integers(1, 12),
    per_stage=st.integers(1, 4),
    tokens=st.integers(1000, 10**9),
    share=st.one_of(st.none(), st.floats(0.05, 0.95)),
    lora_from=st.one_of(st.none(), st.integers(1, 12)),
)
def test_all_tokens_are_shared_out_over_the_stages(
    blocks: int, per_stage: int, tokens: int, share: float | None, lora_from: int | None
) -> None:
    grow = {"blocks": blocks, "per_stage": per_stage, "tokens": tokens, "first_stage_share": share}
    found = stages({"train": {}, "grow": {**grow, "lora_from": lora_from, "lora_phase": "interleaved"}})
    each = [stage.train.tokens or 0 for stage in found]
    assert abs(sum(each) - tokens) <= len(each)
    assert max(each[1:], default=0) == min(each[1:], default=0)
    assert each[0] == round(tokens * (share if share and len(each) > 1 else 1 / len(each)))
    assert found[-1].num_blocks == blocks


def test_a_share_of_tokens_that_are_not_given_is_refused() -> None:
    with pytest.raises(ConfigError, match="first_stage_share is a share of `tokens`"):
        stages({"grow": {"blocks": 2, "first_stage_share": 0.5}})


def test_a_stage_overrides_the_defaults_of_the_plan() -> None:
    first, second = stages(
        {
            "init": "identity",
            "train": {"steps": 10, "learning_rate": 1e-3, "schedule": "linear"},
            "stages": [{"add": 2}, {"add": 1, "init": "copy", "train": {"learning_rate": 5e-4}, "num_workers": 2}],
        }
    )
    assert (first.init, first.train.learning_rate, first.train.schedule) == ("identity", 1e-3, "linear")
    assert (second.init, second.train.learning_rate, second.train.schedule) == ("copy", 5e-4, "linear")
    assert (first.num_workers, second.num_workers) == (None, 2)


def test_a_window_of_active_blocks_slides_and_is_cut_to_the_depth() -> None:
    found = stages({"stages": [{"add": 1, "active": 5}, {"add": 1, "active": 2}, {"add": 1, "active": 2}]})
    assert [(stage.num_active, stage.num_frozen) for stage in found] == [(1, 0), (2, 0), (2, 1)]


def test_a_plan_that_continues_a_lineage_counts_on_from_it() -> None:
    (found,) = stages({"stages": [{"add": 0, "active": 2}]}, num_stages_before=4, num_blocks_before=6)
    assert (found.index, found.name, found.num_blocks, found.num_frozen) == (5, "tune-6", 6, 4)


LORA = {"rank": 2}


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({}, "give the plan either as a list `stages` (with plan.grow=null) or as the shorthand `grow`"),
        (
            {"grow": {"blocks": 1}, "stages": [{}]},
            "give the plan either as a list `stages` (with plan.grow=null) or as the shorthand `grow`",
        ),
        ({"stages": []}, "`stages` is empty; give at least one stage"),
        ({"stages": [{"add": 0}]}, "plan, stage 1: add=0: the first stage adds no block"),
        ({"stages": [{}, {"add": 2, "active": 1}]}, "plan, stage 2: active=1: fewer than the 2 blocks added would"),
        ({"stages": [{"lora": LORA}]}, "plan, stage 1: lora: no frozen block to adapt at depth 1"),
        ({"grow": {"blocks": 2, "active": 2, "lora_from": 2}}, "plan, stage 2: lora: no frozen block to adapt"),
        ({"stages": [{}, {"add": 0, "head": False}]}, "plan, stage 2: nothing would train"),
        ({"stages": [{"name": "a/b"}]}, "stages.0.name='a/b': string should match pattern"),
        ({"stages": [{"lora": {"rank": 0}}]}, "stages.0.lora.rank=0: input should be greater than or equal to 1"),
        ({"stages": [{"lora": {"targets": ["gate"]}}]}, "stages.0.lora.targets=['gate']: unknown target ['gate']; use"),
        ({"stages": [{"lora": {"targets": []}}]}, "stages.0.lora.targets=[]: unknown target"),
        ({"stages": [{"train": {"leraning_rate": 1}}]}, "plan, stage 1: train: leraning_rate: unknown key (value 1)"),
        ({"stages": [{}, {"train": {"warmup": 1}}]}, "plan, stage 2: train: warmup=1: input should be less than 1"),
        ({"train": {}, "grow": {"blocks": 2}}, "plan, stage 1: train: a stage needs an upper limit: set train.tokens"),
        ({"train": {"seconds": 5}, "grow": {"blocks": 2}}, "plan, stage 1: train: a stage needs an upper limit"),
        ({"mode": "monolithic", "stages": [{}, {"train": {"tokens": 5}}]}, "plan.mode=monolithic: the stages are"),
        ({"mode": "monolithic", "train": {"steps": 5, "seconds": 9}, "grow": {"blocks": 2}}, "plan.mode=monolithic"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_naming_the_stage_and_the_key(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stages(tree)
    assert sentence in str(caught.value) and caught.value.remedy


def test_a_wrong_training_value_is_refused_before_anything_is_resolved() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'learning_rate'"):
        build_config(PlanConfig, {"grow": {"blocks": 3}, "train": {"steps": 1, "leaning_rate": 1}})


@pytest.mark.parametrize("limit", [{"tokens": 1000}, {"steps": 7}])
def test_the_control_trains_all_blocks_on_the_tokens_of_all_stages_together(limit: dict[str, int]) -> None:
    grow = {"blocks": 6, "per_stage": 2, "lora_from": 4, "lora_phase": "interleaved"}
    grown = stages({"train": limit, "grow": grow})
    (control,) = stages({"train": limit, "grow": grow, "mode": "monolithic"})
    assert (control.num_blocks, control.num_active, control.add, control.head) == (6, 6, 6, True)
    assert (control.name, control.lora, control.init) == ("monolithic", None, "random")
    for kind in ("tokens", "steps"):
        assert (getattr(control.train, kind) or 0) == sum(getattr(stage.train, kind) or 0 for stage in grown)


def test_the_control_of_a_plan_that_shares_out_its_tokens_gets_them_all() -> None:
    grow = {"blocks": 3, "tokens": 9_000, "first_stage_share": 0.5}
    (control,) = stages({"train": {}, "grow": grow, "mode": "monolithic"})
    assert control.train.tokens == 9_000


def test_the_control_of_a_continued_lineage_has_the_plans_final_depth() -> None:
    (control,) = stages({"grow": {"blocks": 2}, "mode": "monolithic"}, num_blocks_before=4, num_stages_before=4)
    assert (control.num_blocks, control.num_active, control.index) == (6, 6, 5)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"steps": 10}, 10),
        ({"tokens": 1000}, 10),
        ({"tokens": 1049}, 10),
        ({"tokens": 1}, 1),
        ({"steps": 3, "tokens": 1000}, 3),
        ({"steps": 30, "tokens": 1000}, 10),
    ],
)
def test_a_stage_ends_at_the_first_limit_it_reaches(train: dict[str, Any], expected: int) -> None:
    assert build_config(StageTraining, train).num_steps(tokens_per_step=100) == expected


def test_lora_targets_may_be_named_together_alone_or_as_a_list() -> None:
    assert LoraConfig().targets == LoraConfig(targets="all-linear").targets == LINEAR_TARGETS
    assert LoraConfig(targets="q_proj").targets == ("q_proj",)
    assert LoraConfig(targets=("q_proj", "up_proj")).targets == ("q_proj", "up_proj")


def test_a_resolved_stage_survives_the_way_to_a_worker() -> None:
    for stage in stages({"grow": {"blocks": 3, "lora_from": 2}}):
        assert Stage.model_validate(stage.model_dump(mode="json")) == stage


def test_an_unfrozen_plan_adds_the_same_blocks_and_trains_all_of_them() -> None:
    found = stages({"unfreeze": True, "grow": {"blocks": 3}})
    assert shape(found) == [(1, 1, 0), (2, 2, 0), (3, 3, 0)]
    assert [stage.num_prefix for stage in found] == [0, 0, 0]
    (control,) = stages({"unfreeze": True, "grow": {"blocks": 3}, "mode": "monolithic"})
    assert control.num_active == 3


def test_blocks_in_the_middle_have_older_ones_on_both_sides() -> None:
    found = stages({"insert": "middle", "stages": [{"add": 2}, {"add": 2}, {"add": 1, "insert": "top"}]})
    assert [list(stage.new_blocks) for stage in found] == [[0, 1], [1, 2], [4]]
    assert [list(stage.active_blocks) for stage in found] == [[0, 1], [1, 2], [4]]
    assert [(stage.num_prefix, stage.num_frozen) for stage in found] == [(0, 0), (1, 2), (4, 4)]
    assert [found[1].place_of(block) for block in range(2)] == [0, 3]
    unfrozen = stages({"insert": "middle", "unfreeze": True, "stages": [{"add": 2}, {"add": 1}]})[1]
    assert (list(unfrozen.new_blocks), list(unfrozen.active_blocks)) == ([1], [0, 1, 2])
    (alone,) = stages({"insert": "middle", "grow": {"blocks": 1}}, num_blocks_before=1)
    assert list(alone.new_blocks) == [1]


def test_a_stage_without_new_blocks_has_all_of_them_as_its_prefix() -> None:
    for insert in ("top", "middle"):
        found = stages({"insert": insert, "stages": [{"add": 3}, {"add": 0}]})[1]
        assert (list(found.active_blocks), found.num_prefix) == ([], 3)


def test_a_schedule_of_the_plan_knows_where_each_stage_lies_in_it() -> None:
    plan = {"schedule": "plan", "decay": 0.5, "stages": [{"train": {"steps": 30}}, {"train": {"steps": 10}}]}
    assert [(stage.span, stage.decay) for stage in stages(plan)] == [((0.0, 0.75), 0.5), ((0.75, 1.0), 0.5)]
    assert [stage.span for stage in stages({**plan, "mode": "monolithic"})] == [(0.0, 1.0)]
    assert [stage.span for stage in stages({**plan, "schedule": "per_stage"})] == [None, None]


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"unfreeze": True, "grow": {"blocks": 2, "active": 2}}, "plan, stage 1: active: plan.unfreeze=true trains"),
        ({"unfreeze": True, "stages": [{}, {"lora": LORA}]}, "plan, stage 2: lora: plan.unfreeze=true trains"),
        ({"insert": "middle", "stages": [{}, {"lora": LORA}]}, "plan, stage 2: insert=middle: adapters would lie on"),
        ({"insert": "middle", "stages": [{"add": 3}, {"active": 2}]}, "plan, stage 2: insert=middle: active=2: which"),
        ({"schedule": "plan", "train": {"steps": 5, "seconds": 9}, "grow": {"blocks": 2}}, "plan.schedule=plan: a"),
        (
            {"schedule": "plan", "stages": [{}, {"train": {"steps": None, "tokens": 5}}]},
            "plan.schedule=plan: the stages",
        ),
        (
            {"parametrization": "completep", "train": {"steps": 5, "optimizer": "muon"}, "grow": {"blocks": 2}},
            "parametrization=completep has rates for AdamW only",
        ),
    ],
)
def test_choices_that_contradict_each_other_are_refused(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stages(tree)
    assert sentence in str(caught.value) and caught.value.remedy
