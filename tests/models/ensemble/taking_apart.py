"""The members of an ensemble as models of their own again: what tests compare the ensemble with."""

from __future__ import annotations

from torch import nn

from growtx.models import GrowtxConfig, GrowtxEnsembleForCausalLM, GrowtxForCausalLM
from growtx.models.causal_lm import build_around


def members_of(ensemble: GrowtxEnsembleForCausalLM) -> dict[str, GrowtxForCausalLM]:
    """The specialists of an ensemble, sharing its parameters."""
    return {name: member_of(ensemble, name) for name in ensemble.config.member_names or []}


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
    tensors = {
        f"{prefix}.{key}": tensor
        for prefix, part in parts.items()
        for key, tensor in part.state_dict(keep_vars=True).items()
    }
    return build_around(GrowtxForCausalLM, GrowtxConfig(**own), tensors, like=ensemble)
