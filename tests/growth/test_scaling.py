"""Plans made longer or shorter keep their shares and cost what they are asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.growth.flops import stage_flops
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.growth.scaling import control_plan, lineage_flops, plan_cost, scaled_to
from tests import tiny

TOKENS = 64  # of one step


def plan(**changes: Any) -> PlanConfig:
    return build_config(PlanConfig, {"grow": {"blocks": 4}, "train": {"tokens": 100 * TOKENS}, **changes})


@pytest.mark.parametrize("measure", ["tokens", "flops"])
@pytest.mark.parametrize(
    "changes",
    [
        {"grow": {"blocks": 4}},
        {"grow": {"blocks": 4, "active": 2}},
        {"grow": {"blocks": 4, "per_stage": 2, "lora_from": 3, "lora": {"rank": 2, "alpha": 4}}},
        {"mode": "monolithic"},
        {"stages": [{"add": 2, "train": {"tokens": 30000}}, {"add": 2, "train": {"tokens": 10000}}], "grow": None},
    ],
)
def test_every_plan_comes_to_the_same_cost(measure: Any, changes: dict[str, Any]) -> None:
    config = tiny.config()
    wanted = plan_cost(config, resolve(plan(mode="monolithic")), measure, tokens_per_step=TOKENS)
    scaled = scaled_to(plan(**changes), config, measure, wanted, tokens_per_step=TOKENS)
    found = plan_cost(config, resolve(scaled), measure, tokens_per_step=TOKENS)
    assert found == pytest.approx(wanted, rel=0.01)


def test_stages_keep_their_shares_and_everything_but_their_length() -> None:
    stages = [
        {"add": 2, "train": {"steps": 300, "learning_rate": 0.5}},
        {"add": 1, "active": 2, "train": {"steps": 100}},
    ]
    before = plan(grow=None, stages=stages, train={}, init="identity")
    after = resolve(scaled_to(before, tiny.config(), "tokens", 200 * TOKENS, tokens_per_step=TOKENS))
    assert [stage.train.steps for stage in after] == [150, 50]
    assert [stage.num_active for stage in after] == [2, 2]
    assert after[0].train.learning_rate == 0.5 and after[1].init == "identity"


@pytest.mark.parametrize("wanted", [41, 42, 45.6, 50.4, 399])
def test_what_rounding_leaves_goes_to_the_next_stage(wanted: float) -> None:
    after = resolve(scaled_to(plan(), tiny.config(), "tokens", wanted * TOKENS, tokens_per_step=TOKENS))
    steps = [stage.train.steps or 0 for stage in after]
    assert abs(sum(steps) - wanted) <= 0.5
    assert max(steps) - min(steps) <= 1


def test_a_stage_is_never_shorter_than_a_step() -> None:
    after = resolve(scaled_to(plan(), tiny.config(), "tokens", TOKENS, tokens_per_step=TOKENS))
    assert all(stage.train.steps == 1 for stage in after)


def test_what_ends_by_time_cannot_be_compared_at_equal_cost() -> None:
    with pytest.raises(ConfigError, match="not known in advance"):
        scaled_to(plan(train={"steps": 5, "seconds": 3}), tiny.config(), "flops", 1e9, tokens_per_step=TOKENS)


def test_a_control_is_written_out_with_what_the_first_stage_has_of_its_own() -> None:
    stages = [{"add": 2, "num_workers": 2, "train": {"learning_rate": 0.5, "tokens": 64_000}}, {"add": 1, "lora": {}}]
    given = plan(grow=None, stages=stages, init="identity", mode="monolithic")
    written = scaled_to(given, tiny.config(3), "tokens", 70 * TOKENS, tokens_per_step=TOKENS)
    (stage,) = resolve(written)
    assert (stage.num_blocks, stage.num_active, stage.lora, stage.init) == (3, 3, None, "random")
    assert (stage.train.steps, stage.train.tokens, stage.train.learning_rate, stage.num_workers) == (70, None, 0.5, 2)


def test_a_lineage_cost_what_its_stages_really_trained_on(tmp_path: Path) -> None:
    """`tiny` says a thousand tokens a stage, whatever the plan had in mind."""
    manifests = tiny.write_run(tmp_path / "run", tiny.build_tokenizer())
    per_stage = [
        stage_flops(tiny.config(manifest.num_blocks), build_config(Stage, manifest.stage)).total * 1000
        for manifest in manifests
    ]
    assert lineage_flops(manifests, tokens_per_step=TOKENS) == pytest.approx(sum(per_stage))
    assert lineage_flops(manifests, since=1, tokens_per_step=TOKENS) == pytest.approx(sum(per_stage[1:]))
    assert lineage_flops(manifests, since=3, tokens_per_step=TOKENS) == 0.0


def test_a_control_on_a_lineage_trains_the_blocks_below_too() -> None:
    written = control_plan(
        plan(), tiny.config(), "tokens", 9 * TOKENS, tokens_per_step=TOKENS, num_blocks=6, num_blocks_before=2
    )
    (stage,) = resolve(written, num_blocks_before=2)
    assert (stage.add, stage.num_blocks, stage.num_active, stage.train.steps) == (4, 6, 6, 9)
