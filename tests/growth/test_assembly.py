"""Assembly: a grown model starts as its parent did, and comes back from its blobs as it was stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.exceptions import CorruptBlobError, FingerprintError
from growtx.growth.assembly import (
    assemble,
    block_prefix,
    build_stage_model,
    check_same,
    describe_model,
    head_state,
    new_head,
    read_state,
    split_state,
)
from growtx.growth.plan import Stage
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.configuration import GrowtxConfig
from growtx.store.blobs import BlobStore, blob_path
from growtx.store.manifest import Manifest
from tests import tiny


def parent(num_blocks: int = 1) -> GrowtxForCausalLM:
    (stage,) = tiny.stages(stages=[{"add": num_blocks}])
    model = build_stage_model(tiny.config(num_blocks), stage, None, tiny.substrate(), seed=0)
    model.requires_grad_(True)
    tiny.disturb(model)
    return model


def next_stage(**stage: Any) -> Stage:
    return tiny.stages(stages=[{"add": 1}, stage])[1]


def grown(from_model: GrowtxForCausalLM, stage: Stage, seed: int = 0) -> GrowtxForCausalLM:
    return build_stage_model(tiny.config(stage.num_blocks), stage, from_model.state_dict(), tiny.substrate(), seed=seed)


@pytest.mark.parametrize("add", [1, 2])
def test_a_block_grown_as_identity_keeps_the_logits_bit_for_bit(add: int) -> None:
    old = parent()
    new = grown(old, next_stage(add=add, init="identity"))
    assert new.config.num_hidden_layers == 1 + add
    assert torch.equal(tiny.logits(new), tiny.logits(old))


def test_a_block_grown_as_identity_is_not_dead() -> None:
    new = grown(parent(), next_stage(add=1, init="identity"))
    new.requires_grad_(True)
    new(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    assert new.model.layers[1].self_attn.o_proj.weight.grad.abs().max() > 0
    assert new.model.layers[1].mlp.down_proj.weight.grad.abs().max() > 0


def test_a_copied_block_is_the_parents_newest_in_its_own_memory() -> None:
    old = parent()
    new = grown(old, next_stage(add=2, init="copy"))
    source = split_state(old.state_dict(), block_prefix(0))
    for index in (1, 2):
        copied = split_state(new.state_dict(), block_prefix(index))
        assert all(torch.equal(copied[name], source[name]) for name in source)
    pointers = [parameter.data_ptr() for parameter in new.parameters()]
    assert len(pointers) == len(set(pointers))
    deep = parent(2)
    third = build_stage_model(
        tiny.config(3), tiny.stages(stages=[{"add": 2}, {"add": 1, "init": "copy"}])[1], deep.state_dict(),
        tiny.substrate(), seed=0,
    )  # fmt: skip
    newest, copied = (split_state(model.state_dict(), block_prefix(i)) for model, i in ((deep, 1), (third, 2)))
    assert all(torch.equal(copied[name], newest[name]) for name in newest)


def test_random_blocks_depend_on_seed_and_position_and_on_nothing_else() -> None:
    once, again = grown(parent(), next_stage(add=2)), grown(parent(), next_stage(add=2))
    assert all(torch.equal(once.state_dict()[name], again.state_dict()[name]) for name in once.state_dict())
    first, second = (split_state(once.state_dict(), block_prefix(index)) for index in (1, 2))
    assert not torch.equal(first["mlp.up_proj.weight"], second["mlp.up_proj.weight"])
    other = grown(parent(), next_stage(add=2), seed=1)
    assert not torch.equal(other.state_dict()[block_prefix(1) + "mlp.up_proj.weight"], first["mlp.up_proj.weight"])
    two_stages = grown(grown(parent(), next_stage(add=1)), tiny.stages(stages=[{"add": 2}, {"add": 1}])[1])
    assert all(torch.equal(two_stages.state_dict()[name], once.state_dict()[name]) for name in once.state_dict())


def test_a_first_stage_draws_its_head_and_stands_on_the_substrate() -> None:
    (stage,) = tiny.stages(stages=[{"add": 1, "init": "copy"}])
    model = build_stage_model(tiny.config(1), stage, None, tiny.substrate(), seed=3)
    assert torch.equal(model.model.embed_tokens.weight, tiny.substrate())
    head = new_head(tiny.config(1), seed=3)
    assert all(torch.equal(tensor, head[name]) for name, tensor in head_state(model.state_dict()).items())
    assert head["lm_head.weight"].std() == pytest.approx(0.2, rel=0.05)
    assert "lm_head.bias" not in new_head(tiny.config(1, lm_head_bias=False), seed=3)


def test_training_a_grown_model_does_not_write_into_the_parents_tensors() -> None:
    old = parent()
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    for init in ("random", "identity", "copy"):
        new = grown(old, next_stage(add=1, init=init))
        shared = {p.data_ptr() for p in old.parameters()} & {p.data_ptr() for p in new.parameters()}
        new.requires_grad_(True)
        tiny.disturb(new)
        assert not shared and all(torch.equal(old.state_dict()[name], before[name]) for name in before)


def test_a_model_comes_back_from_its_blobs_as_it_was_stored(tmp_path: Path, tokenizer: Any) -> None:
    manifests = tiny.write_run(tmp_path / "run", tokenizer)
    store = BlobStore(str(tmp_path / "run"))
    model = assemble(store, manifests[1])
    expected = read_state(store, manifests[1])
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)
    assert all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert describe_model(model.config) == manifests[1].model


def test_older_blocks_are_shared_by_reference_and_adapters_are_added_on_reading(finished_run: Path) -> None:
    store = BlobStore(str(finished_run))
    first, second, adapted = (
        Manifest.model_validate_json(path.read_text()) for path in sorted((finished_run / "manifests").glob("*.json"))
    )
    assert first.blocks[0] == second.blocks[0] and first.substrate == adapted.substrate
    assert [ref.blob for ref in adapted.blocks] == [ref.blob for ref in second.blocks]
    assert [len(ref.adapters) for ref in adapted.blocks] == [1, 1]
    before, after = read_state(store, second), read_state(store, adapted)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    assert {name for name in changed if "layers" in name} == {
        name for name in before if name.endswith(tuple(f"{projection}.weight" for projection in projections))
    }


def test_a_damaged_blob_is_never_assembled(run_dir: Path) -> None:
    manifest = Manifest.model_validate_json((run_dir / "manifests/01-depth-1.json").read_text())
    path = run_dir / blob_path(manifest.head)
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CorruptBlobError, match=manifest.head):
        assemble(BlobStore(str(run_dir)), manifest)


def test_what_a_manifest_keeps_of_a_model_makes_the_same_model_again() -> None:
    config = tiny.config(2, substrate_fingerprint="a", tokenizer_fingerprint="b", eos_token_id=2, rope_theta=5e3)
    again = GrowtxConfig(**describe_model(config))
    assert describe_model(again) == describe_model(config) and again.residual_initializer_range == pytest.approx(0.1)


def test_what_stands_on_another_tokenizer_or_substrate_is_refused() -> None:
    check_same("tokenizer", "a", "a", "here")
    with pytest.raises(FingerprintError) as caught:
        check_same("substrate", "a" * 64, None, "parent=runs/x")
    assert str(caught.value) == (
        "parent=runs/x: the substrate is a different one (fingerprint None, expected aaaaaaaaaaaa). "
        "Use the substrate that the model was grown on."
    )


def test_a_silent_block_in_the_middle_keeps_the_logits_and_moves_what_was_above_it() -> None:
    old = parent(2)
    stage = tiny.stages(insert="middle", stages=[{"add": 2}, {"add": 1, "init": "identity"}])[1]
    new = grown(old, stage)
    assert torch.equal(tiny.logits(new), tiny.logits(old))
    blocks = [split_state(new.state_dict(), block_prefix(index)) for index in range(3)]
    before = [split_state(old.state_dict(), block_prefix(index)) for index in range(2)]
    for moved, kept in ((blocks[0], before[0]), (blocks[2], before[1])):
        assert all(torch.equal(moved[name], kept[name]) for name in kept)


def test_two_blocks_inserted_at_one_place_are_not_drawn_alike() -> None:
    one, two = tiny.stages(insert="middle", stages=[{"add": 3}, {}, {}])[1:]
    assert list(one.new_blocks) == list(two.new_blocks) == [2]
    state = grown(grown(parent(3), one), two).state_dict()
    key = "mlp.up_proj.weight"
    assert not torch.equal(state[block_prefix(2) + key], state[block_prefix(3) + key])


def test_a_copy_in_the_middle_is_of_the_block_below_it() -> None:
    old = parent(2)
    new = grown(old, tiny.stages(insert="middle", stages=[{"add": 2}, {"init": "copy"}])[1])
    below, copied = (split_state(new.state_dict(), block_prefix(index)) for index in (0, 1))
    assert all(torch.equal(copied[name], below[name]) for name in below)


@pytest.mark.parametrize("unfreeze", [False, True])
def test_a_run_grown_in_the_middle_is_read_back_and_shares_what_did_not_train(
    tmp_path: Path, tokenizer: Any, unfreeze: bool
) -> None:
    plan = {"insert": "middle", "unfreeze": unfreeze, "stages": [{"add": 2}, {"add": 1}]}
    first, second = tiny.write_run(tmp_path / "run", tokenizer, plan)
    kept = {ref.blob for ref in first.blocks} & {ref.blob for ref in second.blocks}
    assert len(second.blocks) == 3
    assert kept == (set() if unfreeze else {first.blocks[0].blob, first.blocks[1].blob})
    if not unfreeze:
        assert [ref.blob for ref in second.blocks[::2]] == [ref.blob for ref in first.blocks]
        assert second.blocks[1].blob in second.new_blobs
    model = assemble(BlobStore(str(tmp_path / "run")), second)
    stored = read_state(BlobStore(str(tmp_path / "run")), second)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())
