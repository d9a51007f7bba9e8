"""Presets for real hardware: the published parameter counts, on the meta device, and memory that fits the GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peft.tuners import tuners_utils
from torch._subclasses.fake_tensor import FakeTensorMode

from growtx.growth.flops import active_parameters
from growtx.growth.forecast import Placement, forecast
from growtx.growth.freezing import checkpoint_activations, prepare_for_stage
from growtx.growth.plan import Stage, resolve
from growtx.growth.scaling import resolve_matched
from growtx.models import loss
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.configuration import GrowtxConfig
from growtx.run.config import load_run_config
from growtx.run.forecast import forecast_tables, placement_of, planned_architecture
from tests.growth.live_bytes import LiveBytes

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


@pytest.fixture
def shapes_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors have shapes, types and lifetimes, but no content; PEFT need not move adapters to where they are.

    Nor keep them in fp32: DeepSpeed casts the whole model.
    """
    monkeypatch.setattr(tuners_utils, "cast_adapter_dtype", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(tuners_utils.BaseTunerLayer, "_move_adapter_to_device_of_base_layer", lambda *_, **__: None)
    with FakeTensorMode():
        yield


def walked_bytes(config: GrowtxConfig, stage: Stage, placement: Placement) -> int:
    """Weights and the peak of all else that one micro batch makes, in bf16, counted by walking a step."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        depth = {**config.to_dict(), "num_hidden_layers": stage.num_blocks}
        model = prepare_for_stage(GrowtxForCausalLM(GrowtxConfig(**depth)), stage, seed=0).train()
    finally:
        torch.set_default_dtype(torch.float32)
    if placement.activation_checkpointing:
        checkpoint_activations(model)
    tokens_BT = torch.zeros(placement.micro_batch, config.max_position_embeddings, dtype=torch.long)
    with LiveBytes().watch(model) as live:
        model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    return live.peak + sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("preset", ["pgt-1x24", "pgt", "study-9", "binary-16"])
def test_the_forecast_is_what_a_walk_through_a_step_counts(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the walk counts there are the optimizer's weights and moments and, of all micro batches, the sums."""
    config = load_run_config(preset, [])
    architecture, placement = planned_architecture(config), placement_of(config)
    monkeypatch.setattr(loss, "memory_of_gpu", lambda _: placement.gpu_bytes)
    stages = resolve_matched(config.plan, architecture, tokens_per_step=config.tokens_per_step)
    rows = forecast(architecture, stages, placement, tokens_per_step=config.tokens_per_step)
    assert placement.bf16
    for stage, row in zip(stages, rows, strict=True):
        sums = 4 * row.active_parameters // placement.num_workers if placement.sums_in_fp32 else 0
        walked = walked_bytes(architecture, stage, placement) + row.memory.optimizer + sums
        assert row.memory.total == pytest.approx(walked, rel=0.15), stage.name
