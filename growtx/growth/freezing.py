"""Which parameters train in a stage, and the proof that the others did not move."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn

from growtx.growth.lora import add_adapters, base_model
from growtx.growth.plan import Stage
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.store.blobs import hash_tensors


def prepare_for_stage(model: GrowtxForCausalLM, stage: Stage, *, seed: int) -> nn.Module:
    """Add the stage's adapters and let exactly its parameters require gradients.

    Returns:
        The model, or the peft model around it when the stage has a LoRA phase.
    """
    wrapped: nn.Module = model
    if stage.lora is not None:
        wrapped = add_adapters(model, stage.lora, stage.num_frozen, seed=seed)  # before the rest: peft freezes all
    else:
        model.requires_grad_(False)
    for index in stage.active_blocks:
        model.model.layers[index].requires_grad_(True)
    model.model.norm.requires_grad_(stage.head)
    model.lm_head.requires_grad_(stage.head)
    model.model.embed_tokens.requires_grad_(stage.train_substrate)
    return wrapped


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the inputs of blocks that gradients pass through, and run those blocks again in the backward pass.

    Transformers would also let the embeddings require gradients, which reentrant checkpoints need and ours do not:
    gradients would then pass through the whole frozen prefix.
    """
    inner = base_model(model)
    inner.gradient_checkpointing_enable()
    inner.disable_input_require_grads()


def frozen_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that must not change, under the names they have without adapters."""
    for name, parameter in base_model(model).named_parameters():
        if not parameter.requires_grad:
            yield name.replace(".base_layer", ""), parameter


def hash_frozen(tensors: Iterator[tuple[str, torch.Tensor]]) -> tuple[str, int]:
    """One sha256 over named tensors, hashed one by one so that memory stays small, and their number."""
    hashes = {name: hash_tensors({name: tensor}) for name, tensor in tensors}
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(listing.encode()).hexdigest(), len(hashes)
