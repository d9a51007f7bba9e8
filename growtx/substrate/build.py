"""Build a substrate: the frozen token embedding matrix, and the recipe that makes it again bit for bit.

Legend: V tokens, D hidden size, E stored width (a row fills D by repetition).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from growtx.config import ConfigModel, fingerprint
from growtx.exceptions import StoreError, SubstrateError
from growtx.storage import Storage
from growtx.substrate.codes import binary_codes, learned_start
from growtx.substrate.collisions import separate
from growtx.substrate.fonts import Font, find_font
from growtx.substrate.glyph import principal_components
from growtx.substrate.rendering import PUBLISHED, render_strips

# Finished substrate matrices, kept by what they were made from and named by what they are.
#
# A file is called after the hash of its recipe and the fingerprint of its content, so that a damaged one is noticed
# and made again. The folder may be local or any fsspec URL.


Matrix = NDArray[np.float32]
Identify = Callable[[dict[str, Any], Matrix], str]


def cached(cache_dir: str, recipe: dict[str, Any], identify: Identify, make: Callable[[], Matrix]) -> Matrix:
    """The matrix of a recipe: from the cache if it is there and intact, else made and put there.

    Raises:
        SubstrateError: if the cache cannot be written.
    """
    storage, key = Storage(cache_dir), fingerprint(recipe)
    for name in _names(storage):
        if name.startswith(f"{key}-"):
            matrix = _read(storage, name)
            if matrix is not None and name == f"{key}-{identify(recipe, matrix)}.npy":
                return matrix
    matrix = make()
    try:
        storage.write_file(
            f"{key}-{identify(recipe, matrix)}.npy",
            lambda file: np.lib.format.write_array(file, matrix, allow_pickle=False),
        )
    except StoreError as error:
        raise SubstrateError(
            f"{cache_dir} cannot be written ({error.problem})", "Free space or set cache_dir"
        ) from error
    return matrix


def _names(storage: Storage) -> list[str]:
    try:
        return storage.list_names()
    except OSError:  # a file in the way, or no permission: the write will say so
        return []


def _read(storage: Storage, name: str) -> Matrix | None:
    try:
        return np.asarray(np.load(io.BytesIO(storage.read_bytes(name)), allow_pickle=False))
    except (StoreError, ValueError, EOFError):
        return None


Kind = Literal["glyph", "glyph+code", "binary", "learned"]
Expansion = Literal["none", "interleave", "tile"]


class SubstrateConfig(ConfigModel):
    """How tokens become vectors."""

    kind: Kind = Field(
        default="glyph+code", description="pictures, pictures made distinct, bits of ids, or learned vectors"
    )
    font: str | None = Field(
        default=None, description="font file, or unifont: GNU Unifont of the system; null: the packaged fonts"
    )
    cell_pixels: Literal[32, 64] = Field(default=32, description="side of a token's picture")
    augment: bool = Field(default=True, description="rotate, shift, speckle and blur pictures as published")
    layout: Literal["interleave", "tile"] = Field(default="interleave", description="how bits fill hidden_size")


@dataclass(frozen=True)
class Substrate:
    """A token embedding matrix and where it comes from.

    Attributes:
        weight: [V, E] float32.
        expansion: how a row of E fills the hidden size D.
        recipe: JSON-able description from which the same weight is built again.
        fingerprint: sha256 over recipe and weight (recipe only if trainable).
    """

    weight: torch.Tensor
    expansion: Expansion
    recipe: dict[str, Any]
    fingerprint: str


def build_substrate(
    config: SubstrateConfig, surfaces: Sequence[str], hidden_size: int, *, seed: int = 42, cache_dir: str | None = None
) -> Substrate:
    """Build the substrate of a vocabulary.

    Args:
        config: kind, font and layout.
        surfaces: what each token id draws [V].
        hidden_size: D of the model.
        seed: for kind `learned`.
        cache_dir: folder or URL where drawn matrices are kept; None draws every time.

    Raises:
        SubstrateError: for a font that cannot be used, or a hidden size that the kind cannot have.
    """
    recipe: dict[str, Any] = {"kind": config.kind, "vocab_size": len(surfaces), "hidden_size": hidden_size}
    if config.kind == "binary":
        return _finish(recipe | {"layout": config.layout}, binary_codes(len(surfaces), hidden_size))
    if config.kind == "learned":
        return _finish(recipe | {"seed": seed}, learned_start(len(surfaces), hidden_size, seed))
    font = find_font(config.font)
    recipe |= {
        "font": font.name,
        "font_sha256": font.sha256,
        "cell_pixels": config.cell_pixels,
        "augment": config.augment,
        "surfaces_sha256": _surfaces_sha256(surfaces),
    }
    return _finish(recipe, _drawn(recipe, surfaces, font, cache_dir))


def rebuild_substrate(recipe: dict[str, Any], surfaces: Sequence[str], font: str | None = None) -> Substrate:
    """Rebuild a substrate from its recipe, on any machine, to verify its fingerprint.

    Args:
        recipe: of a `Substrate`.
        surfaces: of the same tokenizer.
        font: file of the font with the recipe's hash, if it is not where fonts usually are.

    Raises:
        SubstrateError: if the tokenizer is a different one, or the font cannot be found.
    """
    if recipe["vocab_size"] != len(surfaces):
        raise SubstrateError("This substrate was made for another tokenizer", "Give the tokenizer of the same run")
    if recipe["kind"] == "binary":
        return _finish(recipe, binary_codes(recipe["vocab_size"], recipe["hidden_size"]))
    if recipe["kind"] == "learned":
        return _finish(recipe, learned_start(recipe["vocab_size"], recipe["hidden_size"], recipe["seed"]))
    if _surfaces_sha256(surfaces) != recipe["surfaces_sha256"]:
        raise SubstrateError("This substrate was drawn for another tokenizer", "Give the tokenizer of the same run")
    return _finish(recipe, _drawn(recipe, surfaces, find_font(font, sha256=recipe["font_sha256"]), None))


def substrate_fingerprint(recipe: dict[str, Any], weight: NDArray[np.float32]) -> str:
    """sha256 over the canonical recipe and, unless it is learned, the bytes of the matrix."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode())
    if recipe["kind"] != "learned":
        digest.update(np.ascontiguousarray(weight, dtype="<f4").data)
    return digest.hexdigest()


def _finish(recipe: dict[str, Any], weight: NDArray[np.float32]) -> Substrate:
    return Substrate(
        weight=torch.from_numpy(weight),
        expansion="none" if weight.shape[1] == recipe["hidden_size"] else recipe.get("layout", "none"),
        recipe=recipe,
        fingerprint=substrate_fingerprint(recipe, weight),
    )


def _drawn(recipe: dict[str, Any], surfaces: Sequence[str], font: Font, cache_dir: str | None) -> NDArray[np.float32]:
    def make() -> NDArray[np.float32]:
        side = recipe["cell_pixels"]
        packed = render_strips(surfaces, font, side, PUBLISHED[side] if recipe["augment"] else None)
        weight = principal_components(packed, recipe["hidden_size"])
        return separate(weight) if recipe["kind"] == "glyph+code" else weight

    return make() if cache_dir is None else cached(cache_dir, recipe, substrate_fingerprint, make)


def _surfaces_sha256(surfaces: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(surfaces)).encode()).hexdigest()


# What a run remembers of its substrate: `substrate.json`.


SUBSTRATE_FILE = "substrate.json"


class SubstrateRecord(ConfigModel):
    """Which blob of a run holds the substrate, and how to make it again."""

    blob: str = Field(pattern=r"^[0-9a-f]{64}$")
    substrate_fingerprint: str
    expansion: Expansion
    kind: Kind
    recipe: dict[str, Any]
