"""Packed data made in memory, each window recognisable by its first token.

Shapes: N windows, T positions.
"""

from __future__ import annotations

import numpy as np

from growtx.data.packing import PackedData, PackedSplit, SourceWindows

PAD = 0
LENGTH = 6


def source(name: str, first: int, num_windows: int) -> SourceWindows:
    """[N, T]: window i starts with token `first + i`, the last position is padding."""
    windows = np.full((num_windows, LENGTH), 3, dtype=np.int32)
    windows[:, 0] = first + np.arange(num_windows)
    windows[:, -1] = PAD
    return SourceWindows(name, windows, num_documents=1, num_tokens=windows.size, num_bytes=windows.size, sha256=name)


def packed(
    train: tuple[int, ...] = (20, 10), validation: tuple[int, ...] = (7, 5), weights: tuple[float, ...] = (3.0, 1.0)
) -> PackedData:
    """Windows of each source on both sides; training windows start with tokens from 10, held-out ones from 50."""

    def split(first: int, sizes: tuple[int, ...]) -> PackedSplit:
        starts = [first + sum(sizes[:index]) for index in range(len(sizes))]
        return PackedSplit(
            tuple(source(f"source-{i}", start, size) for i, (start, size) in enumerate(zip(starts, sizes, strict=True)))
        )

    return PackedData("nowhere", split(10, train), split(50, validation), weights, LENGTH, "t", PAD)
