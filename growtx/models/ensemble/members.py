"""From specialists to an ensemble, without copying a weight.

An ensemble holds the very tensors of its members, so combining them cannot change one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from growtx.exceptions import ConfigError, FingerprintError, StoreError
from growtx.models.causal_lm import GrowtxForCausalLM, build_around
from growtx.models.configuration import IDENTITY, SPECIAL_TOKENS, GrowtxConfig
from growtx.models.ensemble.configuration import GrowtxEnsembleConfig
from growtx.models.ensemble.flat import GrowtxEnsembleForCausalLM

Members = Mapping[str, GrowtxForCausalLM]
SHARED_SHAPE = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "rope_theta",
    "layer_norm_eps",
    "lm_head_bias",
    "substrate_width",
    "substrate_expansion",
)


def from_members(members: Members, *, rule: dict[str, Any] | str = "mean") -> GrowtxEnsembleForCausalLM:
    """An ensemble of specialists that shares their parameters.

    Lower blocks that are bit-identical between members are kept once.

    Args:
        members: specialists by name; depths may differ, everything else of their shape may not.
        rule: name or spec of the combination rule; learned tensors start at their defaults.

    Raises:
        FingerprintError: two members do not share tokenizer or substrate.
        ConfigError: shapes differ, or there is no member.
        StoreError: a member has weights that are not finite.
    """
    if not members:
        raise ConfigError("an ensemble needs at least one member", "Name the specialists to combine")
    first_name, first = next(iter(members.items()))
    for name, model in members.items():
        if model.config.substrate_reinjection:
            raise ConfigError(
                f"specialist {name} adds its substrate again in every block (model.substrate_reinjection), which "
                "ensembles do not know",
                "Grow specialists with model.substrate_reinjection=false",
            )
    for name, model in members.items():
        _check_pair(first_name, first, name, model)
        _check_finite(name, model)
    sources, member_blocks = _lay_out_blocks(members)
    shape = {key: getattr(first.config, key) for key in (*SHARED_SHAPE, "initializer_range", "num_layers_for_init")}
    identity = {key: getattr(first.config, key) for key in IDENTITY}
    tokens = {key: getattr(first.config, key) for key in SPECIAL_TOKENS}
    config = GrowtxEnsembleConfig(
        **shape,
        **identity,
        **tokens,
        max_position_embeddings=min(model.config.max_position_embeddings for model in members.values()),
        member_names=list(members),
        member_blocks=member_blocks,
        rule={"name": rule} if isinstance(rule, str) else rule,
        dtype=first.dtype,
    )
    parts: dict[str, nn.Module] = {"embed_tokens": first.model.embed_tokens}
    parts |= {f"layers.{index}": block for index, block in enumerate(sources)}
    parts |= {f"norms.{index}": model.model.norm for index, model in enumerate(members.values())}
    parts |= {f"lm_heads.{index}": model.lm_head for index, model in enumerate(members.values())}
    ensemble = build_around(GrowtxEnsembleForCausalLM, config, _tensors(parts), like=first)
    ensemble.set_rule(rule)
    return ensemble


def member_of(ensemble: GrowtxEnsembleForCausalLM, name: str) -> GrowtxForCausalLM:
    """One specialist of an ensemble as a model of its own, sharing its parameters."""
    index = (ensemble.config.member_names or []).index(name)
    blocks = ensemble.config.blocks_of_members[index]
    own = {key: value for key, value in ensemble.config.to_dict().items() if key in GrowtxConfig().to_dict()}
    own |= {"num_hidden_layers": len(blocks), "dtype": ensemble.dtype, "architectures": None}
    own.pop("model_type")
    parts: dict[str, nn.Module] = {"model.embed_tokens": ensemble.embed_tokens, "model.norm": ensemble.norms[index]}
    parts |= {f"model.layers.{depth}": ensemble.layers[block] for depth, block in enumerate(blocks)}
    parts["lm_head"] = ensemble.lm_heads[index]
    return build_around(GrowtxForCausalLM, GrowtxConfig(**own), _tensors(parts), like=ensemble)


def _check_pair(first_name: str, first: GrowtxForCausalLM, name: str, model: GrowtxForCausalLM) -> None:
    pair = f"specialists {first_name} and {name}"
    for what in ("tokenizer", "substrate"):
        ours, theirs = (getattr(config, f"{what}_fingerprint") for config in (first.config, model.config))
        if ours != theirs:
            raise FingerprintError(
                f"{pair} do not share a {what}: {ours or 'none recorded'} and {theirs or 'none recorded'}",
                "Only specialists grown with the same tokenizer and substrate can be combined",
            )
    for key in SHARED_SHAPE:
        ours, theirs = getattr(first.config, key), getattr(model.config, key)
        if ours != theirs:
            raise ConfigError(
                f"{pair} differ in {key}: {ours} and {theirs}", "Specialists of one ensemble may differ in depth only"
            )
    if first.dtype != model.dtype:
        raise ConfigError(f"{pair} differ in dtype: {first.dtype} and {model.dtype}", "Load both in one dtype")
    # A substrate that was trained before it was frozen has the recipe's fingerprint, whatever it became.
    if not torch.equal(first.model.embed_tokens.weight, model.model.embed_tokens.weight):
        raise FingerprintError(
            f"{pair} have substrates of the same recipe ({first.config.substrate_fingerprint}) but unequal weights",
            "Grow both from a common first stage, or use a substrate that is never trained",
        )


def _check_finite(name: str, model: GrowtxForCausalLM) -> None:
    for parameter_name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise StoreError(
                f"specialist {name} has values that are not finite in {parameter_name}",
                "Its training diverged or its blobs are damaged: verify the run, or grow it again",
            )


def _lay_out_blocks(members: Members) -> tuple[list[nn.Module], list[list[int]]]:
    """Distinct blocks and each member's indices into them: a trie over equal lower blocks."""
    blocks: list[nn.Module] = []
    above: dict[int, list[int]] = {-1: []}  # indices of the blocks known to stand on a block
    layout = []
    for model in members.values():
        path = [-1]
        for block in model.model.layers:
            index = next((known for known in above[path[-1]] if _equal(blocks[known], block)), None)
            if index is None:
                index = len(blocks)
                blocks.append(block)
                above[path[-1]].append(index)
                above[index] = []
            path.append(index)
        layout.append(path[1:])
    return blocks, layout


def _equal(first: nn.Module, second: nn.Module) -> bool:
    return all(
        ours is theirs or torch.equal(ours, theirs)
        for ours, theirs in zip(first.parameters(), second.parameters(), strict=True)
    )


def _tensors(parts: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The parameters of modules under new prefixes."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, part in parts.items()
        for name, tensor in part.state_dict(keep_vars=True).items()
    }
