"""Proof that a run's substrate is what its recipe makes: it is rebuilt, and must match bit for bit."""

from __future__ import annotations

import torch

from growtx.config import build_config, parse_yaml
from growtx.data.tokenizer import token_surfaces
from growtx.exceptions import StoreError, SubstrateError
from growtx.growth.assembly import SUBSTRATE_KEY
from growtx.growth.lineage import Lineage, tokenizer_of
from growtx.store.blobs import BlobStore
from growtx.substrate.build import SUBSTRATE_FILE, SubstrateRecord, rebuild_substrate


def verify_substrate(lineage: Lineage, font: str | None = None) -> str:
    """Build the substrate of a lineage from its recipe and compare every bit of it.

    Args:
        lineage: of a run that has its tokenizer and `substrate.json`.
        font: file of the font with the recipe's hash, if it is not where fonts usually are.

    Returns:
        What was proven, in one sentence.

    Raises:
        SubstrateError: the font is not on this machine, or there is nothing to rebuild.
        StoreError: what the run has stored is not what the recipe makes.
    """
    storage, last = lineage.storage, lineage.last
    record = build_config(SubstrateRecord, parse_yaml(storage.read_text(SUBSTRATE_FILE), storage.path(SUBSTRATE_FILE)))
    where = f"the substrate of {storage.root}"
    if record.kind == "learned":
        raise SubstrateError(f"{where} is learned, not built from a recipe", "Verify without --substrate")
    try:
        substrate = rebuild_substrate(record.recipe, token_surfaces(tokenizer_of(lineage)), font)
    except (KeyError, TypeError, ValueError, AssertionError) as error:  # one that we did not write
        raise StoreError(f"{storage.path(SUBSTRATE_FILE)} has no recipe that can be followed", "Restore it") from error
    stored = BlobStore(storage.root).get(record.blob)[SUBSTRATE_KEY]
    if substrate.fingerprint != last.substrate_fingerprint or not torch.equal(substrate.weight, stored):
        raise StoreError(
            f"{where} is not what its recipe makes (fingerprint {substrate.fingerprint[:12]}, the manifests say "
            f"{last.substrate_fingerprint[:12]})",
            "Restore the run from a copy",
        )
    rows, width = substrate.weight.shape
    if last.substrate != record.blob:
        return f"substrate: rebuilt from its recipe, {rows} x {width}, bit for bit; a first stage then trained it"
    return f"substrate: rebuilt from its recipe, {rows} x {width}, bit for bit"
