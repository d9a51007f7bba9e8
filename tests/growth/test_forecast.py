"""Forecasts: exact parameters, FLOPs by the published formulas, bytes that move the way sharding moves them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from growtx.growth import forecast as forecasting
from growtx.growth.assembly import build_stage_model
from growtx.growth.flops import count_trainable, stage_flops
from growtx.growth.forecast import Placement, StageForecast, forecast
from growtx.growth.freezing import checkpoint_activations, prepare_for_stage
from growtx.models.counting import num_params
from tests import tiny
from tests.growth.live_bytes import LiveBytes

ONE = Placement(num_workers=1, zero_stage=1, micro_batch=2, bf16=False)


def rows(placement: Placement = ONE) -> list[StageForecast]:
    stages = tiny.stages(
        train={"steps": 10}, stages=[{"add": 2}, {"add": 1}, {"add": 0, "active": 0, "lora": {"rank": 2}}]
    )
    return forecast(tiny.config(3), stages, placement, tokens_per_step=64)


def test_parameters_are_those_of_the_built_model() -> None:
    first = rows()[0]
    model = build_stage_model(tiny.config(2), first.stage, None, tiny.substrate(), seed=0)
    assert first.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert first.active_parameters == count_trainable(prepare_for_stage(model, first.stage, seed=0))


def test_a_stage_takes_the_flops_of_its_tokens() -> None:
    first = rows()[0]
    assert (first.num_tokens, first.flops) == (640, 640 * stage_flops(tiny.config(3), first.stage).total)


def test_zero_stages_shard_what_their_names_say() -> None:
    by_stage = {stage: rows(replace(ONE, num_workers=4, zero_stage=stage))[1].memory for stage in (1, 2, 3)}
    alone = rows()[1].memory
    assert by_stage[1].optimizer == alone.optimizer // 4 and by_stage[1].gradients == alone.gradients
    assert by_stage[2].gradients == alone.gradients and by_stage[2].weights == alone.weights
    assert by_stage[3].weights == alone.weights // 4
    assert by_stage[3].gradients == pytest.approx(alone.gradients * 1.25, rel=0.01)  # the bucket and a quarter


def test_gradients_beyond_a_bucket_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    active = rows()[1].active_parameters
    monkeypatch.setattr(forecasting, "bucket_elements", lambda _: active // 2)
    shares = {stage: rows(replace(ONE, num_workers=2, zero_stage=stage))[1].memory.gradients for stage in (1, 2, 3)}
    alone = rows()[1].memory.gradients
    assert shares[1] == alone
    assert shares[2] == pytest.approx(alone * 3 / 4, rel=0.01) and shares[3] == pytest.approx(alone, rel=0.01)


def test_offloading_and_checkpointing_save_what_they_promise() -> None:
    assert rows(replace(ONE, offload_optimizer=True))[0].memory.optimizer == 0
    assert rows(replace(ONE, activation_checkpointing=True))[0].memory.activations < rows()[0].memory.activations


STAGES: dict[str, list[dict[str, Any]]] = {
    "all blocks": [{"add": 4}],
    "one on three": [{"add": 3}, {"add": 1}],
    "a window": [{"add": 3}, {"add": 1, "active": 2}],
    "adapters": [{"add": 3}, {"add": 1, "lora": {"rank": 2}}],
    "one amid three": [{"add": 3}, {"add": 1, "insert": "middle"}],
}
BATCH, WIDE = 8, {"hidden_size": 32, "vocab_size": 500, "max_position_embeddings": 64}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_activations_are_forecast_to_a_tenth_of_what_a_step_makes(name: str, bf16: bool, checkpointing: bool) -> None:
    stage = tiny.stages(stages=STAGES[name])[-1]
    config = tiny.config(4, **WIDE)
    (below,) = tiny.stages(stages=[{"add": 4}])
    model = prepare_for_stage(
        build_stage_model(config, below, None, torch.randn(500, 32), seed=0), stage, seed=0
    ).train()
    model = model.bfloat16() if bf16 else model
    if checkpointing:
        checkpoint_activations(model)
    tokens_BT = torch.randint(0, 500, (BATCH, 64))
    with LiveBytes().watch(model) as live:
        model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    placement = replace(ONE, micro_batch=BATCH, bf16=bf16, activation_checkpointing=checkpointing)
    (row,) = forecast(config, [stage], placement, tokens_per_step=512)
    head_gradient = 0 if bf16 else num_params(config).head * 4  # exists while the activations do
    assert row.memory.activations + head_gradient == pytest.approx(live.peak, rel=0.1)
