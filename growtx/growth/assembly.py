"""From manifests to models and back: assemble a finished depth, grow the next stage on it, store what trained."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from growtx.exceptions import FingerprintError, GrowtxError, StoreError
from growtx.growth.flops import active_parameters
from growtx.growth.lora import adapters_by_block, merge_adapter
from growtx.growth.parametrization import scales_of
from growtx.growth.plan import Init, Parametrization, Stage
from growtx.models.causal_lm import GrowtxBlock, GrowtxForCausalLM, initialize_block
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import num_params
from growtx.store.blobs import BlobStore
from growtx.store.manifest import BlockRef, FrozenCheck, Manifest

SUBSTRATE_KEY = "model.embed_tokens.weight"
BLOCKS_PREFIX = "model.layers."
HEAD_PREFIXES = ("model.norm.", "lm_head.")
State = dict[str, torch.Tensor]

# The keys of GrowtxConfig that describe a model; everything else in a transformers config is its own bookkeeping.
_MODEL_KEYS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "rope_theta", "layer_norm_eps", "lm_head_bias", "initializer_range",
    "num_layers_for_init", "substrate_width", "substrate_expansion", "substrate_fingerprint",
    "tokenizer_fingerprint", "substrate_kind", "start_token_id", "bos_token_id", "eos_token_id", "pad_token_id",
    "substrate_reinjection",
)  # fmt: skip


def describe_model(config: GrowtxConfig) -> dict[str, Any]:
    """The part of a GrowtxConfig that a manifest keeps."""
    return {key: getattr(config, key) for key in _MODEL_KEYS}


def block_prefix(index: int) -> str:
    return f"{BLOCKS_PREFIX}{index}."


def split_state(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    """The tensors under a prefix, named relative to it: what a block's blob holds."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def head_state(state: Mapping[str, torch.Tensor]) -> State:
    """Final norm and LM head: what a head's blob holds."""
    return {name: tensor for name, tensor in state.items() if name.startswith(HEAD_PREFIXES)}


def read_state(store: BlobStore, manifest: Manifest) -> State:
    """All tensors of a manifest's model, adapters merged, every blob verified."""
    state = _only(store.get(manifest.substrate), (SUBSTRATE_KEY,), "substrate", manifest)
    state |= _only(store.get(manifest.head), HEAD_PREFIXES, "head", manifest)
    for index, ref in enumerate(manifest.blocks):
        block: State = store.get(ref.blob)
        for adapter in ref.adapters:
            with _fitting(manifest):
                block = merge_adapter(block, store.get(adapter))
        state |= {block_prefix(index) + name: tensor for name, tensor in block.items()}
    return state


def _only(state: State, prefixes: tuple[str, ...], part: str, manifest: Manifest) -> State:
    """Refuse a blob that holds more than its part: it would replace tensors of the others without a word."""
    if others := [name for name in state if not name.startswith(prefixes)]:
        raise StoreError(
            f"the {part} of manifest {manifest.file_name} holds {others[0][:60]!r}, which is no part of it",
            "Restore the run from a copy",
        )
    return state


@contextmanager
def _fitting(manifest: Manifest) -> Iterator[None]:
    """Whatever torch and transformers raise about shapes and values inside is an error of the manifest."""
    try:
        yield
    except GrowtxError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, StrictDataclassError) as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise StoreError(
            f"the blobs of manifest {manifest.file_name} do not fit its model: {detail}", "Restore the run from a copy"
        ) from error


def _possible(key: str, value: Any) -> bool:
    if value is None:
        return getattr(GrowtxConfig, key, None) is None
    return not isinstance(value, (int, float)) or 0 <= value <= _LARGEST_SIZE


_LARGEST_SIZE = 2**24  # of any number of a model: more would only take all memory


def recorded_config(manifest: Manifest) -> GrowtxConfig:
    """The configuration of a manifest's model.

    Raises:
        StoreError: it has keys that no model has, or sizes that none can have.
    """
    wrong = [key for key, value in manifest.model.items() if key not in _MODEL_KEYS or not _possible(key, value)]
    depth = manifest.model.get("num_hidden_layers", manifest.num_blocks)
    if wrong or depth != manifest.num_blocks:
        what = f"{wrong[0][:60]!r}" if wrong else f"{str(depth)[:20]} blocks instead of {manifest.num_blocks}"
        raise StoreError(f"the model of manifest {manifest.file_name} is damaged: {what}", "Restore it from a copy")
    with _fitting(manifest):
        return GrowtxConfig(**manifest.model)


def build_model(config: GrowtxConfig, state: State) -> GrowtxForCausalLM:
    """A model that owns exactly these tensors, built without allocating or drawing anything else."""
    with torch.device("meta"):
        model = GrowtxForCausalLM(config)
    model.load_state_dict(state, strict=True, assign=True)
    return model


def assemble(store: BlobStore, manifest: Manifest) -> GrowtxForCausalLM:
    """The finished model of a manifest, in fp32 on the CPU.

    Raises:
        StoreError, CorruptBlobError: a blob is missing or damaged, or does not fit the others.
    """
    config, state = recorded_config(manifest), read_state(store, manifest)
    with _fitting(manifest):
        return build_model(config, state)


def build_stage_model(
    config: GrowtxConfig, stage: Stage, parent: State | None, substrate: torch.Tensor, *, seed: int
) -> GrowtxForCausalLM:
    """The model that a stage starts from: the parent's tensors with new blocks on top of them or amid them.

    Args:
        config: of the grown depth.
        parent: the parent's state, or None for the first stage, whose head is drawn anew.
        substrate: [V, E], used by the first stage only.
    """
    if parent is not None:
        state = _moved(parent, stage)
    else:
        state = new_head(config, seed, stage.parametrization) | {SUBSTRATE_KEY: substrate}
    for age, index in enumerate(stage.new_blocks, start=stage.num_blocks_before):
        block = _new_block(config, stage, age, state, seed)
        state |= {block_prefix(index) + name: tensor for name, tensor in block.items()}
    # The parent's tensors stay as they are: what trains must not write into them.
    return build_model(config, {name: tensor.clone() for name, tensor in state.items()})


def _moved(parent: State, stage: Stage) -> State:
    """The parent's tensors under the names that they have in the stage's model."""
    state = {name: tensor for name, tensor in parent.items() if not name.startswith(BLOCKS_PREFIX)}
    for index in range(stage.num_blocks_before):
        block = split_state(parent, block_prefix(index))
        state |= {block_prefix(stage.place_of(index)) + name: tensor for name, tensor in block.items()}
    return state


def new_head(config: GrowtxConfig, seed: int, parametrization: Parametrization = "standard") -> State:
    """Final norm and LM head of a first stage."""
    weight = torch.empty(config.vocab_size, config.hidden_size)
    weight.normal_(0.0, config.initializer_range, generator=_generator(seed, "head"))
    weight *= scales_of("lm_head.weight", config, parametrization).init
    state = {
        "model.norm.weight": torch.ones(config.hidden_size),
        "model.norm.bias": torch.zeros(config.hidden_size),
        "lm_head.weight": weight,
    }
    if config.lm_head_bias:
        state["lm_head.bias"] = torch.zeros(config.vocab_size)
    return state


def _new_block(config: GrowtxConfig, stage: Stage, age: int, state: State, seed: int) -> State:
    """A new block; it is drawn by its age and not by its place, which an older block may have had."""
    init: Init = stage.init
    if init == "copy" and stage.num_blocks_before:  # a first stage has nothing to copy and starts random
        return split_state(state, block_prefix(stage.position - 1))
    block = GrowtxBlock(config, age)
    initialize_block(block, config, _generator(seed, f"block-{age}"))
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.mul_(scales_of(name, config, stage.parametrization).init)
    if init == "identity":
        # Both branches add exactly zero, so logits are the parent's bit for bit until the first step.
        for projection in (block.self_attn.o_proj, block.mlp.down_proj):
            for parameter in projection.parameters():
                torch.nn.init.zeros_(parameter)
    return {name: copy.deepcopy(tensor) for name, tensor in block.state_dict().items()}


def _generator(seed: int, purpose: str) -> torch.Generator:
    """A separate random generator for each tensor drawn, so that adding a block never changes the draws of another."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def check_same(kind: str, expected: str | None, found: str | None, where: str) -> None:
    """Refuse to combine what was built on different tokenizers or substrates."""
    if expected != found:
        raise FingerprintError(
            f"{where}: the {kind} is a different one (fingerprint {str(found)[:12]}, expected {str(expected)[:12]})",
            f"Use the {kind} that the model was grown on",
        )


# From a trained model back to a manifest: what trained goes into blobs, everything else keeps its parent's.


@dataclass(frozen=True)
class StoredStage:
    """The blobs of the model that a stage leaves, lowest block first, and which of them the stage wrote."""

    substrate: str
    blocks: tuple[BlockRef, ...]
    head: str
    new: tuple[str, ...]


def store_stage(
    store: BlobStore,
    stage: Stage,
    trained: Mapping[str, torch.Tensor],
    *,
    substrate: str,
    parent: Manifest | None,
    untrained_head: Callable[[], State],
) -> StoredStage:
    """Put the tensors that trained into blobs.

    Args:
        trained: by their names in the model, adapters as peft names them.
        substrate: blob that the first stage starts from.
        untrained_head: gives the head of a first stage that does not train it; called in that case only.

    Raises:
        StoreError: a blob cannot be written.
    """
    blocks = _store_blocks(store, stage, trained, parent)
    head = head_state(trained)
    head_blob = store.put(head or untrained_head()) if head or parent is None else parent.head
    used = parent.substrate if parent else substrate
    if stage.train_substrate:
        used = store.put({SUBSTRATE_KEY: trained[SUBSTRATE_KEY]})
    # A first stage also counts the substrate that it starts from as its own, even if it then trains another.
    known = parent.blobs() if parent else []
    blobs = [] if parent else [substrate]
    blobs += [used, *(blob for ref in blocks for blob in (ref.blob, *ref.adapters)), head_blob]
    new = tuple(dict.fromkeys(blob for blob in blobs if blob not in known))
    return StoredStage(used, blocks, head_blob, new)


def _store_blocks(
    store: BlobStore, stage: Stage, trained: Mapping[str, torch.Tensor], parent: Manifest | None
) -> tuple[BlockRef, ...]:
    """The parent's blocks, with the stage's adapters on the frozen ones and new blobs for those that trained."""
    blocks = {stage.place_of(index): ref for index, ref in enumerate(parent.blocks if parent else ())}
    adapters = adapters_by_block(trained, stage.lora) if stage.lora else {}
    for index, tensors in adapters.items():
        old = blocks[index]
        blocks[index] = BlockRef(blob=old.blob, adapters=(*old.adapters, store.put(tensors)))
    for index in stage.active_blocks:
        blocks[index] = BlockRef(blob=store.put(split_state(trained, block_prefix(index))))
    return tuple(blocks[index] for index in range(stage.num_blocks))


def stage_manifest(
    stage: Stage,
    config: GrowtxConfig,
    stored: StoredStage,
    *,
    parent: Manifest | None,
    frozen: FrozenCheck,
    num_tokens: int,
    ended_by: str,
    data_fingerprint: str,
    config_fingerprint: str,
    metrics: Mapping[str, Any],
    versions: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of a stored stage, not written yet.

    Args:
        config: of the depth that the stage reaches.
        num_tokens: trained on since the first stage.
        ended_by: the limit that the stage reached: `tokens`, `steps`, `seconds` or `convergence`.
        versions: of Python and of the packages that the stage was trained with.
    """
    return Manifest(
        name=stage.name,
        index=stage.index,
        parent=parent.digest() if parent else None,
        stage=stage.model_dump(mode="json"),
        model=describe_model(config),
        substrate=stored.substrate,
        blocks=stored.blocks,
        head=stored.head,
        tokenizer_fingerprint=config.tokenizer_fingerprint or "",
        substrate_fingerprint=config.substrate_fingerprint or "",
        data_fingerprint=data_fingerprint,
        config_fingerprint=config_fingerprint,
        active_parameters=active_parameters(config, stage),
        total_parameters=num_params(config).total,
        num_tokens=num_tokens,
        new_blobs=stored.new,
        frozen_check=frozen,
        ended_by=ended_by,
        metrics=dict(metrics),
        versions=dict(versions or {}),
    )
