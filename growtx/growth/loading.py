"""Loading whatever a path points to: a run, one of its stages, an ensemble, a Hugging Face directory."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import growtx.models  # noqa: F401 - registers the Auto classes
from growtx.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from growtx.exceptions import GrowtxError, StoreError
from growtx.growth.assembly import assemble, check_same
from growtx.growth.ensembles import is_ensemble, load_ensemble
from growtx.growth.lineage import open_lineage, tokenizer_of
from growtx.storage import Storage
from growtx.store.blobs import BlobStore


def load_model(path: str, depth: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a result, every blob verified, together with its tokenizer.

    Args:
        path: run directory, manifest, ensemble (its directory or `ensemble.json`), or Hugging Face directory.
        depth: number of blocks of an earlier stage of the lineage; None: the last.

    Returns:
        The model in evaluation mode, fp32, on the CPU; and the tokenizer that it was grown with.

    Raises:
        StoreError, CorruptBlobError, FingerprintError: what is there is not what was stored.
    """
    storage = Storage(path)
    if storage.exists("config.json"):
        return _load_hugging_face(storage, depth)
    if is_ensemble(path):
        if depth is not None:
            raise StoreError(f"{path} is an ensemble and has no stage of depth {depth}", "Leave the depth out")
        return load_ensemble(path)
    lineage = open_lineage(path)
    manifest = lineage.last if depth is None else lineage.at_depth(depth)
    return assemble(BlobStore(lineage.storage.root), manifest).eval(), tokenizer_of(lineage)


def _load_hugging_face(storage: Storage, depth: int | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    directory = storage.download("")
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    except GrowtxError:
        raise
    except Exception as error:  # a damaged directory raises whatever the library that meets it first raises
        detail = " ".join(str(error).split())[:200]
        raise StoreError(f"the model in {storage.root} cannot be loaded: {detail}", "Write or copy it again") from error
    if depth is not None and depth != model.config.num_hidden_layers:
        raise StoreError(
            f"{storage.root} is a Hugging Face directory of {model.config.num_hidden_layers} blocks, not {depth}",
            "Give the run directory to load an earlier depth",
        )
    tokenizer = load_tokenizer(directory)
    expected = getattr(model.config, "tokenizer_fingerprint", None)
    if expected is not None:
        check_same("tokenizer", expected, tokenizer_fingerprint(tokenizer), storage.root)
    return model, tokenizer
