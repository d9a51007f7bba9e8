"""Forecasts: exact parameters, FLOPs by the published formulas, bytes that move the way sharding moves them."""

from __future__ import annotations

from dataclasses import replace

from growtx.growth.assembly import grow
from growtx.growth.budget import count_trainable
from growtx.growth.flops import stage_flops
from growtx.growth.forecast import Placement, StageForecast, forecast
from growtx.growth.freezing import prepare_for_stage
from tests import tiny

ONE = Placement(num_workers=1, zero_stage=1, micro_batch=2, bf16=False)


def rows(placement: Placement = ONE) -> list[StageForecast]:
    stages = tiny.stages(
        train={"steps": 10}, stages=[{"add": 2}, {"add": 1}, {"add": 0, "active": 0, "lora": {"rank": 2}}]
    )
    return forecast(tiny.config(3), stages, placement, tokens_per_step=64)


def test_parameters_are_those_of_the_built_model() -> None:
    first = rows()[0]
    model = grow(tiny.config(2), first.stage, None, tiny.substrate(), seed=0)
    assert first.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert first.active_parameters == count_trainable(prepare_for_stage(model, first.stage, seed=0))


def test_a_stage_takes_the_flops_of_its_tokens() -> None:
    first = rows()[0]
    assert (first.num_tokens, first.flops) == (640, 640 * stage_flops(tiny.config(3), first.stage).total)


def test_zero_stages_shard_what_their_names_say() -> None:
    by_stage = {stage: rows(replace(ONE, num_workers=4, zero_stage=stage))[1].memory for stage in (1, 2, 3)}
    alone = rows()[1].memory
    assert by_stage[1].optimizer == alone.optimizer // 4 and by_stage[1].gradients == alone.gradients
    assert by_stage[2].gradients == alone.gradients // 4 and by_stage[2].weights == alone.weights
    assert by_stage[3].weights == alone.weights // 4


def test_offloading_and_checkpointing_save_what_they_promise() -> None:
    assert rows(replace(ONE, offload_optimizer=True))[0].memory.optimizer == 0
    assert rows(replace(ONE, activation_checkpointing=True))[0].memory.activations < rows()[0].memory.activations
