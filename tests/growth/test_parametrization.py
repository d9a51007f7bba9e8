"""CompleteP: what is folded into initialisation and rates is what the paper writes with factors in the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from growtx.growth.assembly import build_stage_model
from growtx.growth.parametrization import BASE_HIDDEN_SIZE, BASE_NUM_BLOCKS, Scales, scales_of
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.configuration import GrowtxConfig
from growtx.train.engine import EPSILON, parameter_groups
from tests import tiny

DEEPER, WIDER = 4 / BASE_NUM_BLOCKS, tiny.HIDDEN_SIZE / BASE_HIDDEN_SIZE
TRAIN = {"steps": 4, "learning_rate": 1e-3, "weight_decay": 0.1}


def build(parametrization: str, num_blocks: int = 4) -> tuple[GrowtxForCausalLM, Any]:
    (stage,) = tiny.stages(parametrization=parametrization, train=TRAIN, stages=[{"add": num_blocks}])
    config = tiny.config(num_blocks, num_layers_for_init=num_blocks)
    model = build_stage_model(config, stage, None, tiny.substrate(), seed=0)
    model.model.embed_tokens.requires_grad_(False)
    return model, stage


def test_at_the_base_shape_nothing_is_changed() -> None:
    config = GrowtxConfig(
        vocab_size=64, hidden_size=BASE_HIDDEN_SIZE, num_attention_heads=4, num_hidden_layers=BASE_NUM_BLOCKS
    )
    for name, _ in GrowtxForCausalLM(config).named_parameters():
        assert scales_of(name, config, "completep") == Scales()


def test_the_depth_that_counts_is_the_plans_last_and_every_part_of_a_model_is_known() -> None:
    shape = {"hidden_size": 2 * BASE_HIDDEN_SIZE, "num_layers_for_init": 4 * BASE_NUM_BLOCKS}
    config = GrowtxConfig(vocab_size=64, num_attention_heads=4, num_hidden_layers=1, **shape)
    assert scales_of("model.layers.0.mlp.down_proj.weight", config, "completep").learning_rate == 1 / 8
    assert scales_of("model.layers.0.self_attn.q_proj.weight", config, "completep").learning_rate == 1 / 2
    assert scales_of("lm_head.weight", config, "completep").init == 1 / 2
    assert scales_of("model.layers.0.mlp.down_proj.weight", config, "standard") == Scales()
    changed = [name for name, _ in GrowtxForCausalLM(config).named_parameters()]
    assert all(scales_of(name, config, "completep") != Scales() for name in changed)


class WithFactors(nn.Module):
    """The model as the paper writes it: every branch times 1 / m_L, the logits' product times 1 / m_D."""

    def __init__(self, folded: GrowtxForCausalLM) -> None:
        super().__init__()
        self.inner = folded
        with torch.no_grad():
            for block in folded.model.layers:
                for branch in (block.self_attn.o_proj, block.mlp.down_proj):
                    for parameter in branch.parameters():
                        parameter.mul_(DEEPER)
                    branch.register_forward_hook(lambda _, __, output: output / DEEPER)
            folded.lm_head.weight.mul_(WIDER)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        hidden_BTD = self.inner.model(input_ids=tokens_BT, use_cache=False).last_hidden_state
        head = self.inner.lm_head
        logits_BTV: torch.Tensor = hidden_BTD @ head.weight.T / WIDER + head.bias
        return logits_BTV


def paper_groups(model: GrowtxForCausalLM) -> list[dict[str, Any]]:
    """The paper's table 1, alpha = 1, of a model with the factors."""
    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_hidden = ".layers." in name and parameter.dim() == 2
        in_block = ".layers." in name
        groups.append(
            {
                "params": [parameter],
                "lr": TRAIN["learning_rate"] / (WIDER if is_hidden else 1),
                "weight_decay": (0.1 * (WIDER if is_hidden else 1)) if parameter.dim() == 2 else 0.0,
                "eps": EPSILON / WIDER / (DEEPER if in_block else 1),
            }
        )
    return groups


def steps(forward: Any, groups: list[dict[str, Any]]) -> torch.Tensor:
    """Losses of four steps of AdamW, in float64 so that epsilon counts and rounding does not."""
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses = []
    for step in range(4):
        tokens_BT = tiny.tokens(4, seed=step)
        loss = nn.functional.cross_entropy(forward(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_a_model_without_factors_takes_the_steps_of_one_with_them() -> None:
    folded, stage = build("completep")
    folded = folded.double()
    groups = [
        {**group, "lr": group["peak_learning_rate"], "params": list(group["params"])}
        for group in parameter_groups(folded, stage)
    ]
    found = steps(lambda tokens_BT: folded(input_ids=tokens_BT, use_cache=False).logits, groups)
    other = WithFactors(build("completep")[0].double())
    expected = steps(other, paper_groups(other.inner))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert found[-1] < found[0]


@pytest.mark.parametrize("name", ["self_attn.q_proj.weight", "mlp.down_proj.weight"])
def test_new_blocks_are_drawn_by_it(name: str) -> None:
    standard, scaled = (build(kind)[0].model.layers[0].get_parameter(name) for kind in ("standard", "completep"))
    scales = scales_of(name, tiny.config(4, num_layers_for_init=4), "completep")
    torch.testing.assert_close(scaled, standard * scales.init)
    assert scales.init != 1
