"""The published glyph procedure, token by token, as plainly as it can be written. Slow, and obviously correct."""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIMPLE_BLOCKS = [
    (0x0000, 0x007F),  # Basic Latin
    (0x0080, 0x00FF),  # Latin-1 Supplement
    (0x0100, 0x024F),  # Latin Extended-A and -B
    (0x0370, 0x03FF),  # Greek and Coptic
    (0x0400, 0x052F),  # Cyrillic and its supplement
    (0x0530, 0x058F),  # Armenian
]
STRENGTH = {32: (4, 2, 0.01), 64: (7, 3, 0.03)}  # rotation in degrees, shift in pixels, noise


def draw(text: str, font: ImageFont.FreeTypeFont, side: int) -> Image.Image:
    """Each character in its own cell, side by side, centred by its bounding box."""
    strip = Image.new("L", (side * len(text), side), color=255)
    pen = ImageDraw.Draw(strip)
    for index, char in enumerate(text):
        left, top, right, bottom = font.getbbox(char)
        x = index * side + int(side - (right - left)) // 2
        y = int(side - (bottom - top)) // 2 - int(top)
        pen.text((x, y), char, fill=0, font=font)
    return strip


def augment(strip: Image.Image, text: str, side: int) -> Image.Image:
    """Rotation, shift, noise, blur; the generators start at 42 for every token. Black and white."""
    simple = all(any(low <= ord(char) <= high for low, high in SIMPLE_BLOCKS) for char in text)
    rotation, shift, noise = STRENGTH[side] if simple else (0, 0, 0.001)
    random.seed(42)
    np.random.seed(42)
    strip = strip.rotate(random.uniform(-rotation, rotation), expand=False, fillcolor=255)
    moved = Image.new("L", strip.size, color=255)
    moved.paste(strip, (random.randint(-shift, shift), random.randint(-shift, shift)))
    pixels = np.array(moved)
    pixels[np.random.rand(*pixels.shape) < noise] = 0
    moved = Image.fromarray(pixels)
    if simple:
        moved = moved.filter(ImageFilter.GaussianBlur(radius=0.5))
    return moved.point(lambda level: 0 if level < 128 else 255, mode="1")


def picture(text: str, font: ImageFont.FreeTypeFont, side: int, augmented: bool = True) -> list[int]:
    """Ink of a token's picture, in polar order."""
    strip = draw(text, font, side)
    image = augment(strip, text, side) if augmented else strip.point(lambda level: 0 if level < 128 else 255, mode="1")
    image = image.resize((side, side), Image.Resampling.BILINEAR)
    pixels: Any = image.load()
    return [0 if pixels[x, y] else 1 for x, y in polar_order(side)]


@lru_cache
def polar_order(side: int) -> list[tuple[int, int]]:
    """The pixels of a picture by radius, then angle; computed once, as anyone would who draws more than one."""
    places = [(math.hypot(x - side / 2, y - side / 2), math.atan2(y - side / 2, x - side / 2), x, y)
              for y in range(side) for x in range(side)]  # fmt: skip
    return [(x, y) for _, _, x, y in sorted(places)]


def vectors(pictures: np.ndarray[Any, Any], num_components: int) -> np.ndarray[Any, Any]:
    """Principal components by singular value decomposition, rows scaled to length 1."""
    centred = pictures - pictures.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    components = centred @ axes[:num_components].T
    return np.asarray(components / np.linalg.norm(components, axis=1, keepdims=True))
