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
        problem = f"A picture of {num_pixels} pixels lacks the {num_components} components that hidden_size asks for"
        raise SubstrateError(problem, "Use a smaller hidden_size or substrate.cell_pixels=64")
    if len(packed) < num_pixels:
        return _from_tokens(packed, num_components)
    return _from_pixels(packed, num_components)


def _from_pixels(packed: Pixels, num_components: int) -> NDArray[np.float32]:
    """By the covariance of pixels: pictures are projected on its leading eigenvectors."""
    num_tokens, num_pixels = len(packed), packed.shape[1] * 8
    counts_P = np.zeros(num_pixels)
    scatter_PP = np.zeros((num_pixels, num_pixels))
    for _, ink in _chunks(packed, np.float32):
        counts_P += ink.sum(axis=0)
        scatter_PP += ink.T @ ink
    scatter_PP *= num_tokens  # V^2 times the covariance: integers below 2^53
    scatter_PP -= np.multiply.outer(counts_P, counts_P)
    _, basis_PE = leading_eigenvectors(scatter_PP, num_components)
    fixed_PE = np.rint(basis_PE * 2.0**FIXED_POINT_BITS)
    centre_E = counts_P.astype(np.int64) @ fixed_PE.astype(np.int64) / num_tokens
    weight = np.empty((num_tokens, num_components), dtype=np.float32)
    for rows, ink in _chunks(packed, np.float64):
        weight[rows] = _unit_rows(ink @ fixed_PE - centre_E)
    return weight


def _from_tokens(packed: Pixels, num_components: int) -> NDArray[np.float32]:
    """By the products of centred pictures, a smaller matrix if there are fewer tokens than pixels."""
    num_tokens = len(packed)
    ink = np.unpackbits(packed, axis=1).astype(np.float32)
    counts_P = ink.sum(axis=0, dtype=np.float64)
    overlap_V = num_tokens * (ink.astype(np.float64) @ counts_P)
    products_VV = num_tokens**2 * (ink @ ink.T).astype(np.float64)  # all integers below 2^53
    products_VV += counts_P @ counts_P - np.add.outer(overlap_V, overlap_V)
    values_E, vectors_VE = leading_eigenvectors(products_VV, min(num_components, num_tokens))
    components = np.zeros((num_tokens, num_components))
    components[:, : len(values_E)] = vectors_VE * np.sqrt(values_E)
    return _unit_rows(components)


def _unit_rows(components: Floats) -> NDArray[np.float32]:
    lengths = np.sqrt(ordered_sum(components * components))
    if not lengths.all():
        problem = f"{int((lengths == 0).sum())} tokens look exactly like the average of all tokens"
        raise SubstrateError(problem, "Use a font that has the characters of this vocabulary")
    return np.asarray(components / lengths[:, None], dtype=np.float32)


def _chunks(packed: Pixels, dtype: type) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Pictures as numbers, 1 for ink, a bounded number of rows at a time [rows, P]."""
    height = max(1, CHUNK_BYTES // (64 * packed.shape[1]))
    for start in range(0, len(packed), height):
        rows = slice(start, start + height)
        yield rows, np.unpackbits(packed[rows], axis=1).astype(dtype)
