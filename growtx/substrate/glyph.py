"""The `glyph` substrate: pictures of tokens, rotated to their principal components, on the unit sphere.

The result has the same bits on every machine. Counts of ink are integers, exact in floating point whatever the
order of summation, so BLAS may compute them; the eigenvectors come from `growtx.substrate.eigen` and are rounded to
fixed point, which makes the projection of black-and-white pictures a sum of integers too.

Legend: V tokens, P pixels of a picture, E components.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from growtx.exceptions import SubstrateError
from growtx.substrate.eigen import Floats, leading_eigenvectors, ordered_sum
from growtx.substrate.rendering import Pixels

CHUNK_BYTES = 64_000_000  # of float64 values worked on at once: a matrix of any number of tokens is streamed
FIXED_POINT_BITS = 30  # 2^30 times at most 2^12 pixels stays below 2^53, where float64 stops being exact


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
    num_pixels = packed.shape[1] * 8
    if num_components > num_pixels:
        problem = f"A picture of {num_pixels} pixels has no {num_components} components, which hidden_size asks for"
        raise SubstrateError(problem, "Use a smaller hidden_size or substrate.cell_pixels=64")
    counts_P, scatter_PP = scatter(packed)
    _, basis_PE = leading_eigenvectors(scatter_PP, num_components)
    return _project(packed, counts_P, np.rint(basis_PE * 2.0**FIXED_POINT_BITS))


def scatter(packed: Pixels) -> tuple[Floats, Floats]:
    """How many tokens ink each pixel [P], and V^2 times the covariance of the pixels [P, P]; exact integers."""
    num_tokens, num_pixels = packed.shape[0], packed.shape[1] * 8
    counts_P = np.zeros(num_pixels)
    gram_PP = np.zeros((num_pixels, num_pixels))
    for _, ink in _chunks(packed, np.float32):
        counts_P += ink.sum(axis=0)
        gram_PP += ink.T @ ink
    gram_PP *= num_tokens
    gram_PP -= np.multiply.outer(counts_P, counts_P)
    return counts_P, gram_PP


def _project(packed: Pixels, counts_P: Floats, fixed_basis_PE: Floats) -> NDArray[np.float32]:
    weight = np.empty((len(packed), fixed_basis_PE.shape[1]), dtype=np.float32)
    centre_E = counts_P.astype(np.int64) @ fixed_basis_PE.astype(np.int64) / len(packed)
    for rows, ink in _chunks(packed, np.float64):
        projected = ink @ fixed_basis_PE - centre_E
        lengths = np.sqrt(ordered_sum(projected * projected))
        if not lengths.all():
            problem = f"{int((lengths == 0).sum())} tokens look exactly like the average of all tokens"
            raise SubstrateError(problem, "Use a font that has the characters of this vocabulary")
        weight[rows] = projected / lengths[:, None]
    return weight


def _chunks(packed: Pixels, dtype: type) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Pictures as numbers, 1 for ink, a bounded number of rows at a time [rows, P]."""
    height = max(1, CHUNK_BYTES // (64 * packed.shape[1]))
    for start in range(0, len(packed), height):
        rows = slice(start, start + height)
        yield rows, np.unpackbits(packed[rows], axis=1).astype(dtype)
