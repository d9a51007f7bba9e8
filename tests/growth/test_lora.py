"""LoRA phases: silent before training, exact when merged, stored as deltas of single blocks."""

from __future__ import annotations

import pytest
import torch

from growtx.growth.assembly import block_prefix, build_model, build_stage_model, split_state
from growtx.growth.freezing import prepare_for_stage
from growtx.growth.lora import adapters_by_block, base_model, merge_adapter
from growtx.growth.plan import LoraConfig, Stage
from growtx.models.causal_lm import GrowtxForCausalLM
from tests import tiny


def frozen_model() -> GrowtxForCausalLM:
    (stage,) = tiny.stages(stages=[{"add": 2}])
    return build_stage_model(tiny.config(2), stage, None, tiny.substrate(), seed=0)


def lora_stage(**lora: object) -> Stage:
    return tiny.stages(stages=[{"add": 2}, {"add": 0, "lora": {"rank": 3, "alpha": 12.0, **lora}}])[1]


def test_adapters_have_no_effect_before_they_are_trained() -> None:
    model = frozen_model()
    before = tiny.logits(model)
    assert torch.equal(tiny.logits(prepare_for_stage(model, lora_stage(), seed=0)), before)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], ["o_proj", "down_proj"]])
def test_merging_is_what_peft_merges(targets: str | list[str]) -> None:
    stage = lora_stage(targets=targets)
    model = frozen_model()
    sealed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = prepare_for_stage(model, stage, seed=0)
    trained = tiny.disturb(wrapped)
    adapted = tiny.logits(wrapped)
    assert stage.lora is not None
    state = dict(sealed) | {name: tensor for name, tensor in trained.items() if "lora" not in name}
    for index, adapter in adapters_by_block(trained, stage.lora).items():
        merged = merge_adapter(split_state(sealed, block_prefix(index)), adapter)
        state |= {block_prefix(index) + name: tensor for name, tensor in merged.items()}
    ours = build_model(model.config, {name: tensor.clone() for name, tensor in state.items()})
    assert (tiny.logits(ours) - adapted).abs().max() < 1e-5
    pefts = wrapped.merge_and_unload().state_dict()  # type: ignore[operator]
    assert ours.state_dict().keys() == pefts.keys()
    assert max((ours.state_dict()[name] - pefts[name]).abs().max() for name in pefts) < 1e-5


def test_adapters_are_split_by_block_and_carry_their_scaling() -> None:
    stage = lora_stage(targets=["q_proj", "up_proj"])
    assert stage.lora is not None
    trained = tiny.disturb(prepare_for_stage(frozen_model(), stage, seed=0))
    blocks = adapters_by_block(trained, stage.lora)
    assert sorted(blocks) == [0, 1]
    for adapter in blocks.values():
        assert {name: tuple(tensor.shape) for name, tensor in adapter.items()} == {
            "self_attn.q_proj.lora_A": (3, 16),
            "self_attn.q_proj.lora_B": (16, 3),
            "self_attn.q_proj.scaling": (),
            "mlp.up_proj.lora_A": (3, 16),
            "mlp.up_proj.lora_B": (64, 3),
            "mlp.up_proj.scaling": (),
        }
        assert adapter["mlp.up_proj.scaling"] == 4.0
    assert not torch.equal(blocks[0]["mlp.up_proj.lora_A"], blocks[1]["mlp.up_proj.lora_A"])


def test_names_that_are_no_adapters_are_left_out() -> None:
    weights = {"model.layers.0.self_attn.q_proj.weight": torch.ones(1), "lm_head.weight": torch.ones(1)}
    assert adapters_by_block(weights, LoraConfig()) == {}


def test_merging_leaves_the_sealed_block_as_it_is() -> None:
    block = {"self_attn.q_proj.weight": torch.zeros(2, 2), "input_layernorm.weight": torch.ones(2)}
    adapter = {
        "self_attn.q_proj.lora_A": torch.ones(1, 2),
        "self_attn.q_proj.lora_B": torch.ones(2, 1),
        "self_attn.q_proj.scaling": torch.tensor(0.5),
    }
    merged = merge_adapter(block, adapter)
    assert torch.equal(merged["self_attn.q_proj.weight"], torch.full((2, 2), 0.5))
    assert torch.equal(block["self_attn.q_proj.weight"], torch.zeros(2, 2))
    assert merged["input_layernorm.weight"] is block["input_layernorm.weight"]


def test_adapters_depend_on_the_seed_alone_and_drawing_them_does_not_disturb_other_draws() -> None:
    def first_adapter(seed: int) -> torch.Tensor:
        wrapped = prepare_for_stage(frozen_model(), lora_stage(), seed=seed)
        return next(parameter for name, parameter in wrapped.named_parameters() if "lora_A" in name)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = first_adapter(seed=1)
    assert torch.equal(drawn, first_adapter(seed=1)) and not torch.equal(drawn, first_adapter(seed=2))
    model = frozen_model()
    torch.manual_seed(5)
    prepare_for_stage(model, lora_stage(), seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_the_model_inside_is_found_with_and_without_adapters() -> None:
    model = frozen_model()
    assert base_model(model) is model
    assert base_model(prepare_for_stage(model, lora_stage(), seed=0)) is model
