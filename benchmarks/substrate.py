"""What building a substrate costs, beside the plain token-by-token procedure.

Legend: V tokens.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from growtx.substrate.build import SubstrateConfig, build_substrate, substrate_fingerprint
from growtx.substrate.fonts import Font, find_font
from growtx.substrate.glyph import principal_components
from growtx.substrate.rendering import PUBLISHED, render_strips

Row = dict[str, Any]
PlainPicture = Callable[[str, Any, int], object]
SAMPLE = 400


def measure_substrate(
    surfaces: Sequence[str], config: SubstrateConfig, hidden_size: int, plain_picture: PlainPicture | None = None
) -> list[Row]:
    """Measure building a drawn substrate.

    Args:
        surfaces: what each token id draws [V].
        config: kind `glyph` or `glyph+code`.
        hidden_size: D.
        plain_picture: the plain procedure, called as (text, Pillow font, cell_pixels) on a sample of tokens.

    Returns:
        Rows of `measure`, `value` and `unit`: seconds and peak memory of the whole in a process of its own, seconds
        of its parts, and how many times faster than the plain procedure pictures are drawn.
    """
    font = find_font(config.font)
    seconds, peak_memory_bytes = _in_own_process(config, surfaces, hidden_size)
    start = time.perf_counter()
    augmentation = PUBLISHED[config.cell_pixels] if config.augment else None
    packed = render_strips(surfaces, font, config.cell_pixels, augmentation)
    drawn = time.perf_counter()
    weight = principal_components(packed, hidden_size)
    projected = time.perf_counter()
    substrate_fingerprint({"kind": config.kind}, weight)
    hashed = time.perf_counter()
    milliseconds = 1000 * (drawn - start) / len(surfaces)
    rows = [
        _row("whole build", seconds, "s"),
        _row("peak memory of the build", peak_memory_bytes / 2**30, "GiB"),
        _row("pictures", drawn - start, "s"),
        _row("components", projected - drawn, "s"),
        _row("fingerprint", hashed - projected, "s"),
        _row("a picture", milliseconds, "ms"),
    ]
    if plain_picture is not None:
        plain = _plain_milliseconds(plain_picture, surfaces, font, config.cell_pixels)
        rows += [_row("a picture, plain procedure", plain, "ms"), _row("speed-up", plain / milliseconds, "x")]
    return rows


def _row(measure: str, value: float, unit: str) -> Row:
    return {"measure": measure, "value": value, "unit": unit}


def _plain_milliseconds(plain: PlainPicture, surfaces: Sequence[str], font: Font, cell_pixels: int) -> float:
    sample = random.Random(0).sample(list(surfaces), min(SAMPLE, len(surfaces)))
    face = font.at_size(cell_pixels).of("a")
    start = time.perf_counter()
    for text in sample:
        plain(text, face, cell_pixels)
    return 1000 * (time.perf_counter() - start) / len(sample)


def _in_own_process(config: SubstrateConfig, surfaces: Sequence[str], hidden_size: int) -> tuple[float, int]:
    """Peak memory is a property of a process, so a fresh one is needed to measure that of a build."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_build, config, list(surfaces), hidden_size).result()


def _build(config: SubstrateConfig, surfaces: list[str], hidden_size: int) -> tuple[float, int]:
    start = time.perf_counter()
    build_substrate(config, surfaces, hidden_size)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, peak if sys.platform == "darwin" else peak * 1024
