"""The search space: which dimensions mean something in a stage, what is drawn, and how it enters the plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.growth.plan import StageConfig
from growtx.sweep.search import RangeConfig, SpaceConfig, draw, grid, planned_values, stage_with_values
from tests import tiny

PLAN: dict[str, Any] = {"stages": [{"add": 1}, {"add": 0, "active": 0, "lora": {"rank": 2, "alpha": 4.0}}]}
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "global_batch_size": [2, 4],
    "init": ["random", "identity"],
    "lora": {"rank": [1, 2, 4]},
}


def space(**changes: Any) -> SpaceConfig:
    return build_config(SpaceConfig, {**SPACE, **changes})


def test_a_stage_is_searched_only_in_what_it_has() -> None:
    dense, adapting = tiny.stages(**PLAN)
    assert list(space().dimensions(dense)) == ["learning_rate", "global_batch_size", "init"]
    assert list(space().dimensions(adapting)) == ["learning_rate", "global_batch_size", "lora.rank"]


def test_a_stage_with_nothing_to_search_is_refused() -> None:
    dense, _ = tiny.stages(**PLAN)
    with pytest.raises(ConfigError, match=r"nothing to search in stage 1"):
        build_config(SpaceConfig, {"lora": {"rank": [1]}}).dimensions(dense)


def test_logarithmic_draws_are_even_over_the_decades_and_inside() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([draw(RangeConfig(low=1e-4, high=1e-1, log=True), random) for _ in range(3000)])
    assert drawn.min() >= 1e-4 and drawn.max() <= 1e-1
    shares = np.histogram(np.log10(drawn), bins=[-4, -3, -2, -1])[0] / len(drawn)
    assert np.allclose(shares, 1 / 3, atol=0.04)


def test_the_grid_has_every_combination_once() -> None:
    points = list(grid({"a": (1, 2), "b": ("x", "y", "z")}))
    assert len(points) == 6 and len({tuple(point.values()) for point in points}) == 6


def test_values_enter_the_plan_and_everything_else_stays() -> None:
    config = StageConfig.model_validate({"add": 0, "lora": {"rank": 2, "alpha": 4.0}, "train": {"steps": 9}})
    changed = stage_with_values(config, {"learning_rate": 0.5, "lora.rank": 4})
    assert changed.train == {"steps": 9, "learning_rate": 0.5} and changed.lora is not None
    assert (changed.lora.rank, changed.lora.alpha) == (4, 4.0)
    assert stage_with_values(config, {}) == config


def test_planned_values_are_those_that_change_nothing() -> None:
    dense, _ = tiny.stages(**PLAN, train={"steps": 4, "learning_rate": 0.25})
    values = planned_values(dense, space().dimensions(dense), global_batch_size=8)
    assert values == {"learning_rate": 0.25, "global_batch_size": 8, "init": "random"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rate": []}, "learning_rate=[]: the list is empty"),
        ({"learning_rate": 0.1}, "write a list of values or a range"),
        ({"learning_rate": {"low": 2, "high": 1}}, "low=2, high=1 is not a range"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "is not a range of logarithms"),
        ({"learning_rate": [-1]}, "greater than 0"),
        ({"lerning_rate": [1]}, "Did you mean 'learning_rate'"),
        ({"init": ["zero"]}, "init"),
        ({"lora": {"rank": [0]}}, "lora.rank"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(**changes)
    assert sentence in str(caught.value)


def test_a_range_has_no_grid() -> None:
    with pytest.raises(ConfigError, match=r"learning_rate is a range, which has no grid"):
        list(grid({"learning_rate": RangeConfig(low=0.1, high=1)}))
