"""A run's configuration: resolved, checked as a whole, and split into what decides the results and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.run.config import RunConfig, differing_keys, load_run_config
from tests.run.configs import config


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.hiden_size=3", "model.hiden_size: unknown key (value 3). Did you mean 'hidden_size'?"),
        ("data.sources.0.wight=2", "data.sources.0.wight: unknown key (value 2). Did you mean 'weight'?"),
        ("plan.grow.lora.rnk=2", "plan.grow.lora.rnk: unknown key (value 2). Did you mean 'rank'?"),
        ("plan.train.lerning_rate=2", "plan, stage 1: train: lerning_rate: unknown key (value 2). Did you mean"),
        ("model.hidden_size=wide", "model.hidden_size='wide': input should be a valid integer"),
        ("substrate.kind=glyf", "substrate.kind='glyf': input should be 'glyph', 'glyph+code', 'binary', 'random' or"),
        ("training.zero_stage=4", "training.zero_stage=4: input should be 1, 2 or 3"),
        ("resources.num_workers=3", "training.global_batch_size=32 does not split over 3 workers"),
        ("training.micro_batch_size=5", "training.micro_batch_size=5 does not divide a worker's 16 windows"),
        ("name=a b", "name='a b': string should match pattern"),
        ("plan=null", "plan=None: input should be a mapping of keys to values"),
    ],
)
def test_a_wrong_override_names_key_value_and_remedy(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config("demo", [override])
    assert sentence in str(caught.value) and caught.value.remedy and caught.value.exit_code == 2


def test_a_batch_must_split_over_the_workers_of_every_stage() -> None:
    with pytest.raises(ConfigError, match="does not split over 5 workers"):
        load_run_config("demo", ["plan.grow=null", "plan.stages=[{}, {num_workers: 5}]", "plan.train.steps=9"])


def test_the_seed_of_a_run_is_part_of_what_decides_its_results() -> None:
    assert load_run_config("demo", ["seed=1"]).identity_fields() != load_run_config("demo", []).identity_fields()


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "resources.num_workers=1",
        "resources.max_failures=9",
        "cache_dir=/elsewhere",
        "training.zero_stage=3",
        "training.micro_batch_size=4",
        "training.log_every_steps=1",
        "training.checkpoint.every_steps=5",
        "training.offload_optimizer=true",
    ],
)
def test_what_a_run_is_computed_on_does_not_decide_its_results(override: str) -> None:
    assert load_run_config("demo", [override]).identity_fields() == load_run_config("demo", []).identity_fields()


def test_differing_keys_are_named_by_their_path(tmp_path: Any) -> None:
    first, second = config("a.txt").identity_fields(), config("b.txt", seed=1).identity_fields()
    assert differing_keys(first, second) == ["data.sources", "seed"]
    assert differing_keys({"a": {"b": 1}}, {"a": 2, "c": 3}) == ["a", "c"]
    assert differing_keys(first, first) == []


def test_the_block_benchmarks_is_still_read_under_its_first_name() -> None:
    new = load_run_config("demo", ["benchmarks.tasks=[growtx_boolq]", "benchmarks.limit=3"])
    assert load_run_config("demo", ["capability.tasks=[growtx_boolq]", "capability.limit=3"]) == new
    assert (new.benchmarks.tasks, new.benchmarks.controls) == (("growtx_boolq",), "last")
    recorded = new.model_dump(mode="json")
    recorded["capability"] = recorded.pop("benchmarks")
    assert build_config(RunConfig, recorded) == new
    assert new.identity_fields() == load_run_config("demo", []).identity_fields()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("plan.stages=[{data: {wiki: 1}}]", "plan.stages.0.data: there is no source 'wiki'; data.sources has one, two"),
        ("plan.stages=[{}, {data: {one: 0}}]", "plan.stages.1.data: no source has a weight; give one of one, two"),
        ("plan.stages=[{data: {one: -1}}]", "greater than or equal to 0"),
    ],
)
def test_a_stages_data_are_sources_of_the_run(override: str, sentence: str) -> None:
    sources = "data.sources=[{files: a.txt, name: one}, {files: b.txt, name: two}]"
    with pytest.raises(ConfigError) as caught:
        load_run_config("real-text", [sources, override])
    assert sentence in str(caught.value)
    load_run_config("real-text", [sources, "plan.stages=[{data: {two: 1}}]"])


def test_muon_and_an_offloaded_optimizer_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"optimizer=muon gathers whole matrices.*offload_optimizer"):
        load_run_config("real-text", ["plan.train.optimizer=muon", "training.offload_optimizer=true"])
