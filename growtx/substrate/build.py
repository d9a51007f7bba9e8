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
from pydantic import Field, model_validator

from growtx.config import ConfigModel, fingerprint
from growtx.exceptions import StoreError, SubstrateError
from growtx.storage import Storage
from growtx.substrate.codes import binary_codes, binary_width, check_random_width, learned_start, random_codes
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


Kind = Literal["glyph", "glyph+code", "binary", "random", "learned"]
Expansion = Literal["none", "interleave", "tile"]


class SubstrateConfig(ConfigModel):
    """How tokens become vectors."""

    kind: Kind = Field(
        default="glyph+code",
        description="pictures, pictures made distinct, bits of ids, random codes, or learned vectors",
    )
    font: str | None = Field(
        default=None, description="font file, or unifont: GNU Unifont of the system; null: the packaged fonts"
    )
    cell_pixels: Literal[32, 64] = Field(default=32, description="side of a token's picture")
    augment: bool = Field(default=True, description="rotate, shift, speckle and blur pictures as published")
    layout: Literal["interleave", "tile"] = Field(
        default="interleave", description="how codes fill hidden_size: each number repeated, or all of them"
    )
    recode_seed: int | None = Field(
        default=None, ge=0, description="binary: seed of a linear map and a shift that recode all ids; null: neither"
    )
    width: int | None = Field(default=None, ge=1, description="random: numbers in a code; null: hidden_size")
    values: Literal["bits", "floats"] = Field(default="bits", description="random: what codes are made of")
    random_seed: int = Field(default=0, ge=0, description="random: what codes are drawn from")

    @model_validator(mode="after")
    def _only_binary_is_recoded(self) -> SubstrateConfig:
        if self.recode_seed is not None and self.kind != "binary":
            raise ValueError(f"recode_seed={self.recode_seed} recodes kind=binary, and this is kind={self.kind}")
        if self.width is not None and self.kind != "random":
            raise ValueError(f"width={self.width} is that of kind=random, and this is kind={self.kind}")
        return self

    def stored_width(self, vocab_size: int, hidden_size: int) -> int:
        """E: how many numbers of a token's vector are stored.

        Raises:
            SubstrateError: they do not fill the hidden size.
        """
        if self.kind == "binary":
            return binary_width(vocab_size, hidden_size)
        if self.kind == "random":
            width = self.width or hidden_size
            check_random_width(vocab_size, hidden_size, width, is_bits=self.values == "bits")
            return width
        return hidden_size


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
    if config.kind in ("binary", "random", "learned"):
        recipe |= _recipe_of_codes(config, config.stored_width(len(surfaces), hidden_size), seed)
        return _finish(recipe, _codes(recipe))
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
    if recipe["kind"] in ("binary", "random", "learned"):
        return _finish(recipe, _codes(recipe))
    if _surfaces_sha256(surfaces) != recipe["surfaces_sha256"]:
        raise SubstrateError("This substrate was drawn for another tokenizer", "Give the tokenizer of the same run")
    return _finish(recipe, _drawn(recipe, surfaces, find_font(font, sha256=recipe["font_sha256"]), None))


def _recipe_of_codes(config: SubstrateConfig, width: int, seed: int) -> dict[str, Any]:
    """What the recipe of a kind that is not drawn says beside kind and shape."""
    if config.kind == "learned":
        return {"seed": seed}
    if config.kind == "binary":
        recoded = {} if config.recode_seed is None else {"recode_seed": config.recode_seed}
        return {"layout": config.layout, **recoded}
    return {"layout": config.layout, "width": width, "values": config.values, "seed": config.random_seed}


def _codes(recipe: dict[str, Any]) -> NDArray[np.float32]:
    vocab_size, hidden_size = recipe["vocab_size"], recipe["hidden_size"]
    if recipe["kind"] == "binary":
        return binary_codes(vocab_size, hidden_size, recipe.get("recode_seed"))
    if recipe["kind"] == "random":
        return random_codes(vocab_size, recipe["width"], recipe["seed"], is_bits=recipe["values"] == "bits")
    return learned_start(vocab_size, hidden_size, recipe["seed"])


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
