"""The `glyph` substrate: pictures of tokens, rotated to their principal components, on the unit sphere.

Legend: V tokens, P pixels of a picture, E components.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtx.exceptions import SubstrateError
from growtx.substrate.rendering import Pixels

Floats = NDArray[np.float64]
CHUNK_ROWS = 4096
FIXED_POINT = 2.0**30


def principal_components(packed: Pixels, num_components: int) -> NDArray[np.float32]:
    """Project pictures to their leading principal components and scale the rows to length 1.

    Args:
        packed: pictures, eight pixels to a byte [V, P / 8].
        num_components: E, at most P.

    Returns:
        float32 [V, E].

    Raises:
        SubstrateError: if E is more than the pictures have pixels, or all tokens look the same.
    """
    num_tokens, num_pixels = packed.shape[0], packed.shape[1] * 8
    if num_components > num_pixels:
        problem = f"A picture of {num_pixels} pixels has no {num_components} components (hidden_size)"
        raise SubstrateError(problem, "Use a smaller hidden_size or substrate.cell_pixels=64")
    counts_P, gram_PP = _moments(packed)
    scatter_PP = num_tokens * gram_PP - np.outer(counts_P, counts_P)  # integers below 2^53: exact
    _, vectors_PP = np.linalg.eigh(scatter_PP)
    basis_PE = vectors_PP[:, ::-1][:, :num_components]
    return _project(packed, counts_P, basis_PE)


def _moments(packed: Pixels) -> tuple[Floats, Floats]:
    """How many tokens ink each pixel [P] and each pair of pixels [P, P]; counts, hence exact in float32."""
    num_pixels = packed.shape[1] * 8
    counts = np.zeros(num_pixels)
    gram = np.zeros((num_pixels, num_pixels))
    for start in range(0, len(packed), CHUNK_ROWS):
        ink = np.unpackbits(packed[start : start + CHUNK_ROWS], axis=1).astype(np.float32)
        counts += ink.sum(axis=0)
        gram += ink.T @ ink
    return counts, gram


def _project(packed: Pixels, counts_P: Floats, basis_PE: Floats) -> NDArray[np.float32]:
    weight = np.empty((len(packed), basis_PE.shape[1]), dtype=np.float32)
    centre_E = counts_P @ basis_PE / len(packed)
    for start in range(0, len(packed), CHUNK_ROWS):
        ink = np.unpackbits(packed[start : start + CHUNK_ROWS], axis=1).astype(np.float64)
        rows = ink @ basis_PE - centre_E
        lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        if not lengths.all():
            raise SubstrateError("All tokens look the same", "Use a font that has the characters of this vocabulary")
        weight[start : start + CHUNK_ROWS] = rows / lengths
    return weight
