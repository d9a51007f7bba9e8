"""Models, plans and runs small enough for milliseconds, made by the code that training uses, without training.

Shapes: V vocabulary, E = D hidden size, T context length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from growtx.config import build_config
from growtx.growth.assembly import (
    SUBSTRATE_KEY,
    State,
    build_stage_model,
    head_state,
    read_state,
    stage_manifest,
    store_stage,
)
from growtx.growth.freezing import frozen_parameters, hash_frozen, prepare_for_stage
from growtx.growth.lora import without_peft_prefix
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.models.configuration import GrowtxConfig
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.store.manifest import FrozenCheck, Manifest, write_manifest
from growtx.substrate.build import SUBSTRATE_FILE, Substrate, SubstrateRecord

VOCAB_SIZE = 275  # odd, so that nothing divides evenly
HIDDEN_SIZE = 16
CONTEXT_LENGTH = 32
TEXT = "a block that is frozen keeps its weights while the newest block learns to read and to write. "

# One block, one more, then a LoRA phase on both of them.
PLAN: dict[str, Any] = {
    "stages": [{"add": 1}, {"add": 1, "init": "identity"}, {"add": 0, "active": 0, "lora": {"rank": 2, "alpha": 4.0}}],
    "train": {"steps": 4},
}


def config(num_blocks: int = 2, **changes: Any) -> GrowtxConfig:
    """A decoder of `num_blocks` blocks whose weights are large enough that nothing is lost in rounding."""
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": HIDDEN_SIZE, "num_attention_heads": 2}
    context = {"max_position_embeddings": CONTEXT_LENGTH, "num_layers_for_init": 2, "initializer_range": 0.2}
    return GrowtxConfig(num_hidden_layers=num_blocks, **{**shape, **context, **changes})


def stages(**plan: Any) -> tuple[Stage, ...]:
    """The resolved stages of a plan that trains four steps in each unless it says otherwise."""
    return resolve(build_config(PlanConfig, {"train": {"steps": 4}, **plan}))


def substrate() -> torch.Tensor:
    """[V, D]"""
    return torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(7))


def tokens(num_rows: int = 2, seed: int = 0) -> torch.Tensor:
    """[num_rows, T]"""
    return torch.randint(3, VOCAB_SIZE, (num_rows, CONTEXT_LENGTH), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    """[2, T, V]"""
    model.eval()
    return model(input_ids=tokens(), use_cache=False).logits  # type: ignore[no-any-return]


@torch.no_grad()
def disturb(model: nn.Module, seed: int = 0) -> State:
    """Move everything that trains, as training would; returns it by name."""
    generator = torch.Generator().manual_seed(seed)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return without_peft_prefix({name: parameter.detach() for name, parameter in trained.items()})


def config_like(manifest: Manifest, num_blocks: int) -> GrowtxConfig:
    """A decoder of `num_blocks` blocks on the tokenizer and substrate of a manifest."""
    kept = ("tokenizer_fingerprint", "substrate_fingerprint", "eos_token_id", "pad_token_id")
    return config(num_blocks, **{key: manifest.model[key] for key in kept})


def build_tokenizer() -> Any:
    from growtx.data.tokenizer import TokenizerConfig
    from growtx.data.tokenizer import build_tokenizer as build_it

    return build_it(TokenizerConfig(vocab_size=VOCAB_SIZE), [TEXT * 20])


def write_run(
    path: Path, tokenizer: Any, plan: dict[str, Any] | None = None, built: Substrate | None = None
) -> list[Manifest]:
    """Grow a run whose stages are disturbed instead of trained, and write what a run leaves.

    Its substrate is random and has no recipe unless a `built` one is given.
    """
    from growtx.data.tokenizer import tokenizer_fingerprint

    path.mkdir(parents=True)
    tokenizer.save_pretrained(str(path / "tokenizer"))
    store = BlobStore(str(path))
    blob = store.put({SUBSTRATE_KEY: substrate() if built is None else built.weight})
    record = SubstrateRecord(
        blob=blob,
        substrate_fingerprint="s" * 64 if built is None else built.fingerprint,
        expansion="none" if built is None else built.expansion,
        kind="glyph" if built is None else built.recipe["kind"],
        recipe={} if built is None else built.recipe,
    )
    (path / SUBSTRATE_FILE).write_text(record.model_dump_json())
    identity = {
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "substrate_fingerprint": record.substrate_fingerprint,
    }
    tokens_of = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    manifests: list[Manifest] = []
    for stage in stages(**(plan or PLAN)):
        model_config = config(stage.num_blocks, **identity, **tokens_of)
        manifests.append(write_stage(store, stage, model_config, blob, manifests[-1] if manifests else None))
    (path / "run.yaml").write_text("name: tiny\n")
    return manifests


def write_stage(
    store: BlobStore,
    stage: Stage,
    model_config: GrowtxConfig,
    substrate_blob: str,
    parent: Manifest | None,
    *,
    metrics: dict[str, Any] | None = None,
    target: Storage | None = None,
) -> Manifest:
    """Grow, disturb and finalize one stage.

    Args:
        metrics: of the manifest, in place of and beside the usual ones.
        target: directory of the manifest; None: that of the blobs.
    """
    state = read_state(store, parent) if parent else None
    model = build_stage_model(model_config, stage, state, store.get(substrate_blob)[SUBSTRATE_KEY], seed=0)
    wrapped = prepare_for_stage(model, stage, seed=0)
    frozen, num_frozen = hash_frozen(frozen_parameters(wrapped))
    trained = disturb(wrapped, seed=stage.index)
    stored = store_stage(
        store,
        stage,
        trained,
        substrate=substrate_blob,
        parent=parent,
        untrained_head=lambda: head_state(model.state_dict()),
    )
    manifest = stage_manifest(
        stage,
        model_config,
        stored,
        parent=parent,
        frozen=FrozenCheck(num_tensors=num_frozen, before=frozen, after=frozen),
        num_tokens=1000 * stage.index,
        ended_by="steps",
        data_fingerprint="d" * 64,
        config_fingerprint="c" * 64,
        metrics={
            "eval/bits_per_byte_start": 4.0 - stage.index,
            "eval/bits_per_byte": 3.5 - stage.index,
            **(metrics or {}),
        },
    )
    write_manifest(target or store.storage, manifest)
    return manifest
