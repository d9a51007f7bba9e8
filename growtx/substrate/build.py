"""Build a substrate: the frozen token embedding matrix and the recipe that makes it again.

Legend: V tokens, D hidden size, E stored width (D = E times repeats).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from growtx.config import ConfigModel
from growtx.exceptions import SubstrateError

Kind = Literal["glyph", "glyph+code", "binary", "learned"]
Expansion = Literal["none", "interleave", "tile"]


class SubstrateConfig(ConfigModel):
    """How tokens become vectors."""

    kind: Kind = Field(default="glyph", description="what the vectors are made from")
    font: str | None = Field(default=None, description="font file; default GNU Unifont, else the packaged font")
    cell_pixels: Literal[32, 64] = Field(default=32, description="side of a character's picture")
    augment: bool = Field(default=True, description="disturb pictures as the paper does")
    layout: Literal["interleave", "tile"] = Field(default="interleave", description="how binary codes fill hidden_size")


@dataclass(frozen=True)
class Substrate:
    """A token embedding matrix and where it comes from.

    Attributes:
        weight: [V, E] float32.
        expansion: how a row of E fills the hidden size D.
        recipe: JSON-able description from which the same weight is built again.
        fingerprint: sha256 over recipe and weight (recipe only if trainable).
        trainable: whether the vectors are learned instead of frozen.
    """

    weight: torch.Tensor
    expansion: Expansion
    recipe: dict[str, Any]
    fingerprint: str
    trainable: bool = False


def build_substrate(
    config: SubstrateConfig, surfaces: Sequence[str], hidden_size: int, *, seed: int = 42, cache_dir: str | None = None
) -> Substrate:
    """Build the substrate of a vocabulary.

    Args:
        config: kind, font and layout.
        surfaces: what each token id draws [V].
        hidden_size: D of the model.
        seed: for kind `learned`.
        cache_dir: where finished glyph matrices are kept by recipe; None builds every time.

    Raises:
        SubstrateError: for a font that cannot be used, or a hidden size that the kind cannot have.
    """
    recipe: dict[str, Any] = {"kind": config.kind, "vocab_size": len(surfaces), "hidden_size": hidden_size}
    expansion: Expansion = "none"
    if config.kind == "binary":
        expansion = config.layout
        recipe["layout"] = config.layout
        weight = binary_codes(len(surfaces), hidden_size)
    elif config.kind == "learned":
        recipe["seed"] = seed
        weight = _learned(len(surfaces), hidden_size, seed)
    else:
        weight = _drawn(config, surfaces, hidden_size, recipe)
    return Substrate(
        weight=torch.from_numpy(weight),
        expansion=expansion,
        recipe=recipe,
        fingerprint=substrate_fingerprint(recipe, None if config.kind == "learned" else weight),
        trainable=config.kind == "learned",
    )


def substrate_fingerprint(recipe: dict[str, Any], weight: NDArray[np.float32] | None) -> str:
    """sha256 over the canonical recipe and, unless it is learned, the bytes of the matrix."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode())
    if weight is not None:
        digest.update(np.ascontiguousarray(weight, dtype="<f4").data)
    return digest.hexdigest()


def binary_codes(vocab_size: int, hidden_size: int) -> NDArray[np.float32]:
    """The bits of each token id, most significant first, 0 or 1: float32 [V, E].

    E is the smallest divisor of `hidden_size` that holds ceil(log2 V) bits; leading columns beyond it are 0.
    """
    num_bits = max(1, math.ceil(math.log2(vocab_size)))
    width = next((size for size in range(num_bits, hidden_size + 1) if hidden_size % size == 0), None)
    if width is None:
        problem = f"{num_bits} bits for {vocab_size} tokens do not fit into hidden_size={hidden_size}"
        raise SubstrateError(problem, f"Use hidden_size={num_bits} or more")
    shifts = np.arange(width - 1, -1, -1)
    return ((np.arange(vocab_size)[:, None] >> shifts) & 1).astype(np.float32)


def _learned(vocab_size: int, hidden_size: int, seed: int) -> NDArray[np.float32]:
    """Random rows of length about 1, the scale on which the frozen substrates start too."""
    values = np.random.RandomState(seed).standard_normal((vocab_size, hidden_size))
    return (values / math.sqrt(hidden_size)).astype(np.float32)


def _drawn(
    config: SubstrateConfig, surfaces: Sequence[str], hidden_size: int, recipe: dict[str, Any]
) -> NDArray[np.float32]:
    from growtx.substrate.collisions import separate
    from growtx.substrate.fonts import find_font
    from growtx.substrate.glyph import principal_components
    from growtx.substrate.rendering import PUBLISHED, render

    font = find_font(config.font)
    recipe |= {
        "font": font.family,
        "font_sha256": font.sha256,
        "cell_pixels": config.cell_pixels,
        "augment": config.augment,
        "surfaces_sha256": hashlib.sha256("\0".join(surfaces).encode("utf-8", "surrogatepass")).hexdigest(),
    }
    packed = render(surfaces, font, config.cell_pixels, PUBLISHED[config.cell_pixels] if config.augment else None)
    weight = principal_components(packed, hidden_size)
    return separate(weight, packed) if config.kind == "glyph+code" else weight
