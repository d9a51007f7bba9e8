"""Configurations of sweeps: what is refused, before anything runs, and what a best plan is."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.config import build_config, parse_yaml, to_yaml
from growtx.exceptions import ConfigError
from growtx.growth.plan import resolve
from growtx.run.config import RunConfig
from growtx.store.trials import TrialRecord
from growtx.sweep.config import SweepConfig, load_sweep_config
from growtx.sweep.driver import best_plan
from tests.run import configs


def config(sweep: dict[str, Any] | None = None, **changes: Any) -> SweepConfig:
    settings = {"space": {"learning_rate": [1e-3, 1e-2]}, **(sweep or {})}
    return build_config(SweepConfig, {**configs.tree("texts.jsonl", **changes), "kind": "sweep", "sweep": settings})


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["sweep.stage=9"], "--stage 9: the plan has 2 stages. Use a number from 1 to 2"),
        (["sweep.stage=0"], "sweep.stage=0"),
        (["sweep.stage=2"], "--stage 2 needs a parent"),
        (["sweep.space.learning_rat=[1]"], "Did you mean 'learning_rate'"),
        (["sweep.space.learning_rate=[]"], "the list is empty"),
        (["sweep.sampler=grid"], "is a range, which has no grid"),
        (["sweep.sampler=anneal"], "sweep.sampler='anneal'"),
        (["sweep.scheduler.kind=pbt"], "sweep.scheduler.kind='pbt'"),
        (["sweep.num_trials=0"], "sweep.num_trials=0"),
        (["sweep.space={}"], "nothing to search in stage 1"),
        (["sweep.space.global_batch_size=[3]", "resources.num_workers=2"], "does not split over 2 workers"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep_config("sweep-demo", overrides)
    assert sentence in str(caught.value)


def test_a_preset_of_a_run_is_no_sweep() -> None:
    with pytest.raises(ConfigError, match="not a sweep preset"):
        load_sweep_config("demo", [])


def test_only_the_number_at_a_time_may_change_on_resume() -> None:
    assert config({"max_concurrent": 1}).identity_fields() == config({"max_concurrent": 3}).identity_fields()
    assert config({"num_trials": 3}).identity_fields() != config().identity_fields()


def test_a_best_plan_is_a_complete_run_with_the_values_that_were_found() -> None:
    planned = config().run_config()
    best = [
        TrialRecord(stage=1, stage_name="depth-1", number=3, values={"learning_rate": 0.5, "init": "identity"}),
        TrialRecord(stage=2, stage_name="depth-2", number=1, values={"global_batch_size": 2}),
    ]
    found = best_plan(planned, best)
    first, second = resolve(found.plan)
    assert (first.train.learning_rate, first.init, first.train.steps) == (0.5, "identity", 3)
    assert (second.train.global_batch_size, second.train.learning_rate) == (
        2,
        resolve(planned.plan)[1].train.learning_rate,
    )
    assert build_config(RunConfig, parse_yaml(to_yaml(found), "best-plan.yaml")) == found
