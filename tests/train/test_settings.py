"""Training settings: batches that split evenly, and sentences for those that do not."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.specialists.config import load_specialists_config
from growtx.study.config import load_study_config
from growtx.sweep.config import load_sweep_config
from growtx.train.settings import EvaluationConfig, ResourcesConfig, TrainingConfig


@pytest.mark.parametrize(
    ("micro_batch_size", "num_workers", "expected"), [(None, 1, 32), (None, 4, 8), (2, 4, 2), (64, 4, 8)]
)
def test_a_worker_holds_its_share_or_the_micro_batch(
    micro_batch_size: int | None, num_workers: int, expected: int
) -> None:
    settings = TrainingConfig(global_batch_size=32, micro_batch_size=micro_batch_size)
    settings.check_workers(num_workers)
    assert settings.micro_batch(num_workers) == expected


@pytest.mark.parametrize(
    ("settings", "num_workers", "sentence"),
    [
        (
            {"global_batch_size": 32},
            3,
            "training.global_batch_size=32 does not split over 3 workers; choose a multiple",
        ),
        ({"global_batch_size": 2}, 4, "training.global_batch_size=2 does not split over 4 workers"),
        ({"micro_batch_size": 5}, 2, "training.micro_batch_size=5 does not divide a worker's 16 windows"),
    ],
)
def test_a_batch_that_does_not_split_is_refused(settings: dict[str, Any], num_workers: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainingConfig(**settings).check_workers(num_workers)


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"global_batch_size": 0}, "global_batch_size=0"),
        ({"zero_stage": 0}, "zero_stage=0"),
        ({"precision": "fp16"}, "precision='fp16'"),
        ({"gradient_clipping": -1}, "gradient_clipping=-1"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep=0"),
        ({"evaluation": {"num_windows": 0}}, "evaluation.num_windows=0"),
    ],
)
def test_a_setting_out_of_range_is_named(tree: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build_config(TrainingConfig, tree)


@pytest.mark.parametrize("cpus", [0.5, 1, 4])
def test_cpus_are_whole_or_a_share_of_one(cpus: float) -> None:
    assert build_config(ResourcesConfig, {"cpus_per_worker": cpus}).cpus_per_worker == cpus
    with pytest.raises(ConfigError, match=r"cpus_per_worker=1\.5 is neither whole nor below 1"):
        build_config(ResourcesConfig, {"cpus_per_worker": 1.5})


def test_samples_and_evaluations_may_be_turned_off() -> None:
    assert build_config(EvaluationConfig, {"num_samples": 0, "every_steps": None}).num_samples == 0


def test_a_range_of_workers_is_an_elastic_group_and_any_size_of_it_trains_the_whole_batch() -> None:
    group = build_config(ResourcesConfig, {"num_workers": [2, 8]})
    assert (group.min_workers, group.num_workers, group.fewest_workers, group.is_elastic) == (2, 8, 2, True)
    assert group == build_config(ResourcesConfig, {"num_workers": 8, "min_workers": 2})
    fixed = group.of_size(3)
    assert (fixed.num_workers, fixed.fewest_workers, fixed.is_elastic) == (3, 3, False)
    for micro_batch_size in (None, 2, 5):
        settings = TrainingConfig(global_batch_size=32, micro_batch_size=micro_batch_size)
        settings.check_workers(8, is_elastic=True)
        for num_workers in range(2, 9):
            room = num_workers * settings.num_micro_batches(num_workers) * settings.micro_batch(num_workers)
            assert 32 <= room < 32 + num_workers * settings.micro_batch(num_workers)
    with pytest.raises(ValueError, match=r"global_batch_size=6 leaves some of 8 workers without a window; lower the"):
        TrainingConfig(global_batch_size=6).check_workers(8, is_elastic=True)


def test_groups_that_share_a_cluster_have_a_fixed_size() -> None:
    for load in (load_sweep_config, load_study_config, load_specialists_config):
        with pytest.raises(ConfigError, match=r"num_workers=\[1, 2\]: the groups of .* have a fixed size; give one"):
            load(None, ["resources.num_workers=[1, 2]"])


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"num_workers": [8, 2]}, r"num_workers=\[8, 2\] goes down; write the fewest workers first"),
        ({"num_workers": [1, 2, 3]}, r"num_workers=\[1, 2, 3\] is no range; write the fewest and the most"),
        ({"num_workers": [0, 2]}, r"num_workers=\[0, 2\] is no range"),
        ({"num_workers": [1, "many"]}, r"num_workers=\[1, 'many'\] is no range"),
        ({"min_workers": 0}, "min_workers=0"),
    ],
)
def test_a_range_that_is_none_is_refused(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_config(ResourcesConfig, tree)
