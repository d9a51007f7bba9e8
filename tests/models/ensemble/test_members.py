from __future__ import annotations

import pytest
import torch

from growtx.exceptions import ConfigError, FingerprintError, StoreError
from growtx.models import GrowtxEnsembleConfig, GrowtxForCausalLM, from_members
from tests.models.conftest import small_model
from tests.models.ensemble.taking_apart import member_of, members_of

Members = dict[str, GrowtxForCausalLM]


def snapshot(members: Members) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {key: tensor.clone() for key, tensor in model.state_dict().items()} for name, model in members.items()
    }


def test_nothing_is_copied(members: Members) -> None:
    ensemble = from_members(members)
    assert ensemble.layers[0].mlp.up_proj.weight is members["ru"].model.layers[0].mlp.up_proj.weight
    assert ensemble.lm_heads[2].weight is members["de"].lm_head.weight
    assert member_of(ensemble, "zh").model.layers[3].mlp.up_proj.weight is ensemble.layers[5].mlp.up_proj.weight


def test_a_member_taken_out_is_the_model_that_went_in(members: Members, tokens_BT: torch.Tensor) -> None:
    zh = member_of(from_members(members), "zh")
    assert torch.equal(zh(tokens_BT).logits, members["zh"](tokens_BT).logits)
    assert zh.config.num_hidden_layers == 4
    assert zh.config.tokenizer_fingerprint == "tokenizer-a"


def test_continual_growth_leaves_the_other_members_bit_identical(members: Members, tokens_BT: torch.Tensor) -> None:
    before, logits = snapshot(members), {name: model(tokens_BT).logits for name, model in members.items()}
    two = from_members({name: members[name] for name in ("ru", "zh")})
    three = from_members({**members_of(two), "de": members["de"]})
    rest = from_members({name: members_of(three)[name] for name in ("zh", "de")})
    another = small_model(9)
    another.model.embed_tokens.load_state_dict(members["ru"].model.embed_tokens.state_dict())
    replaced = from_members({**members_of(three), "de": another})
    assert three.config.member_names == ["ru", "zh", "de"]
    assert rest.config.member_names == ["zh", "de"]
    assert rest.config.member_blocks == [[0, 1, 2, 3], [4, 5, 6]]
    for ensemble, kept in ((three, ("ru", "zh", "de")), (rest, ("zh", "de")), (replaced, ("ru", "zh"))):
        for name in kept:
            member = member_of(ensemble, name)
            assert all(torch.equal(tensor, before[name][key]) for key, tensor in member.state_dict().items())
            weights = [float(other == name) for other in ensemble.config.member_names]
            alone = ensemble(tokens_BT, member_weights=weights, use_cache=False).logits
            assert torch.equal(alone, logits[name])
    assert torch.equal(member_of(replaced, "de")(tokens_BT).logits, another(tokens_BT).logits)


@pytest.mark.parametrize("what", ["tokenizer", "substrate"])
def test_members_of_another_tokenizer_or_substrate_are_refused_by_name(members: Members, what: str) -> None:
    setattr(members["de"].config, f"{what}_fingerprint", "other")
    with pytest.raises(FingerprintError, match=f"specialists ru and de do not share a {what}: {what}-a and other"):
        from_members(members)


def test_substrates_that_were_trained_apart_are_refused(members: Members) -> None:
    with torch.no_grad():
        members["zh"].model.embed_tokens.weight[5] += 1
    with pytest.raises(FingerprintError, match=r"specialists ru and zh .* unequal weights"):
        from_members(members)


def test_other_shapes_are_refused(members: Members) -> None:
    members["de"] = small_model(3, intermediate_size=64)
    with pytest.raises(ConfigError, match="ru and de differ in intermediate_size: 128 and 64"):
        from_members(members)


def test_values_that_are_not_finite_are_refused(members: Members) -> None:
    with torch.no_grad():
        members["de"].lm_head.bias[3] = float("nan")
    with pytest.raises(StoreError, match=r"specialist de has values that are not finite in lm_head\.bias"):
        from_members(members)


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one member"):
        from_members({})


def test_blocks_may_be_shared_from_below_only() -> None:
    with pytest.raises(ConfigError, match="block 1 is listed above both block 0 and block 2"):
        GrowtxEnsembleConfig(member_names=["a", "b"], member_blocks=[[0, 1], [2, 1]])
    with pytest.raises(ConfigError, match="name of its own"):
        GrowtxEnsembleConfig(member_names=["a", "a"], member_blocks=[[0], [1]])
