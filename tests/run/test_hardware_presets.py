"""Presets for real hardware: the published parameter counts, on the meta device, and memory that fits the GPU."""

from __future__ import annotations

import pytest
import torch

from growtx.growth.flops import active_parameters
from growtx.growth.plan import resolve
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.configuration import GrowtxConfig
from growtx.run.config import load_run_config
from growtx.run.forecast import forecast_tables, planned_architecture

HARDWARE = [f"{name}{size}" for name in ("study-9", "binary-16", "pgt") for size in ("", "-8x24")]
HARDWARE += ["study-9-8x80", "binary-16-1x", "pgt-1x", "pgt-1x24"]


def num_parameters(config: GrowtxConfig) -> int:
    with torch.device("meta"):
        model = GrowtxForCausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


def at_depth(preset: str, num_blocks: int) -> GrowtxConfig:
    config = planned_architecture(load_run_config(preset, []))
    return GrowtxConfig(**{**config.to_dict(), "num_hidden_layers": num_blocks})


@pytest.mark.parametrize("preset", ["study-9", "study-9-8x24", "study-9-8x80"])
def test_the_study_has_the_published_parameters(preset: str) -> None:
    config = load_run_config(preset, [])
    architecture = planned_architecture(config)
    assert f"{num_parameters(architecture) / 1e6:.1f}" == "247.6"
    assert {f"{active_parameters(architecture, stage) / 1e6:.1f}" for stage in resolve(config.plan)} == {"105.0"}


def test_the_long_binary_run_has_the_published_parameters() -> None:
    assert f"{num_parameters(planned_architecture(load_run_config('binary-16', []))) / 1e6:.1f}" == "269.7"


def test_every_depth_of_abs_bvv_has_the_published_parameters() -> None:
    totals = [f"{num_parameters(at_depth('pgt', depth)) / 1e9:.1f}" for depth in range(1, 7)]
    assert (totals[0], totals[-1]) == ("1.3", "2.3")
    config = load_run_config("pgt", [])
    dense = [stage for stage in resolve(config.plan) if stage.lora is None]
    assert {f"{active_parameters(planned_architecture(config), stage) / 1e9:.2f}" for stage in dense} == {"0.74"}


@pytest.mark.parametrize("preset", HARDWARE)
def test_the_forecast_fits_the_gpu_it_is_written_for(preset: str) -> None:
    config = load_run_config(preset, [])
    assert config.resources.accelerator is not None
    forecast_tables(config)  # refuses what does not fit
