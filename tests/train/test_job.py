"""The job: plain data for the workers, and the identity that ties a checkpoint to its stage."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.growth.assembly import describe_model
from growtx.substrate.build import SubstrateRecord
from growtx.train.job import TrainJob
from growtx.train.settings import ResourcesConfig, TrainingConfig
from tests import tiny

PLAN = {"blocks": 3, "lora_from": 2}


def job(**changes: Any) -> TrainJob:
    fields: dict[str, Any] = {
        "run_dir": "/runs/x",
        "packed_path": "/cache/x",
        "prefix_cache_dir": "/cache/prefix",
        "seed": 0,
        "architecture": describe_model(tiny.config(3)),
        "substrate": SubstrateRecord(
            blob="b" * 64, substrate_fingerprint="s", expansion="none", kind="glyph", recipe={"a": [1]}
        ),
        "data_fingerprint": "d",
        "config_fingerprint": "c",
        "stages": tiny.stages(grow=PLAN),
        "num_stages": 3,
        "stage_weights": (1.0, 2.0, 3.0),
        "training": TrainingConfig(global_batch_size=8),
        "resources": ResourcesConfig(num_workers=2),
    }
    return TrainJob(**{**fields, **changes})


def test_a_job_survives_the_way_to_a_worker() -> None:
    assert TrainJob.model_validate(job().model_dump(mode="json")) == job()


def test_the_architecture_is_that_of_any_depth() -> None:
    for depth in (1, 3):
        config = job().model_at(depth)
        assert config.num_hidden_layers == depth
        assert describe_model(config) == {**job().architecture, "num_hidden_layers": depth}


def test_tokens_of_a_step_are_those_of_all_workers() -> None:
    the_job = job(stages=tiny.stages(stages=[{}, {"train": {"global_batch_size": 2}}]))
    assert [the_job.tokens_per_step(stage) for stage in the_job.stages] == [
        8 * tiny.CONTEXT_LENGTH,
        2 * tiny.CONTEXT_LENGTH,
    ]


def identity(stage: int = 1, parent: str | None = "p", **changes: Any) -> str:
    the_job = job(**changes)
    return the_job.stage_fingerprint(the_job.stages[stage], parent)


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": 2},
        {"parent": "q"},
        {"parent": None},
        {"seed": 1},
        {"architecture": describe_model(tiny.config(3, rope_theta=1.0))},
        {"training": TrainingConfig(global_batch_size=16)},
        {"stages": tiny.stages(grow=PLAN, train={"steps": 4, "global_batch_size": 16})},
        {"stages": tiny.stages(grow=PLAN, train={"steps": 4, "learning_rate": 9.0})},
    ],
)
def test_a_checkpoint_of_another_stage_seed_or_batch_does_not_fit(changes: dict[str, Any]) -> None:
    assert identity(**changes) != identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"data_fingerprint": "e"},  # whether the text may change is decided when the run is prepared
        {"resources": ResourcesConfig(num_workers=1)},
        {"training": TrainingConfig(global_batch_size=8, zero_stage=3, micro_batch_size=2, log_every_steps=1)},
        {"run_dir": "/elsewhere", "packed_path": "/elsewhere"},
    ],
)
def test_a_checkpoint_fits_other_resources_and_other_places(changes: dict[str, Any]) -> None:
    assert identity(**changes) == identity()
