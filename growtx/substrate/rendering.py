"""Tokens as black-and-white pictures, by the published procedure, for whole vocabularies at once.

Legend: N tokens, C characters in each of them, S pixels along a cell's side, P = S * S pixels.

The procedure (arXiv 2507.04886 and its notebooks) draws each character in its own cell, side by side; rotates,
shifts, speckles and blurs that strip; thresholds it; and squeezes it into one cell. Two facts make it fast without
changing a pixel. Its random generators start anew at the same seed for every token, so all strips of one length
share one rotation, shift and noise: an index and a mask. And a character looks the same in every token, so it is
drawn once.
"""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from growtx.substrate.fonts import Faces, Font

if TYPE_CHECKING:
    from PIL import Image


Pixels = NDArray[np.uint8]

WHITE, BLACK, THRESHOLD = 255, 0, 128
SIMPLE_SCRIPTS = (range(0x0000, 0x0250), range(0x0370, 0x0590))  # Latin, Greek, Cyrillic, Armenian
SHEET_COLUMNS = 32
BATCH_BYTES = 32_000_000


@dataclass(frozen=True)
class Augmentation:
    """How a strip is distorted: simple scripts in all ways, every other script only by `noise_elsewhere`."""

    rotation_degrees: float
    shift_pixels: int
    noise: float
    noise_elsewhere: float = 0.001
    blur_radius: float = 0.5
    seed: int = 42


PUBLISHED = {32: Augmentation(rotation_degrees=4, shift_pixels=2, noise=0.01),
             64: Augmentation(rotation_degrees=7, shift_pixels=3, noise=0.03)}  # fmt: skip


def is_simple(text: str) -> bool:
    """Whether a token is rotated, shifted and blurred: all its characters are of simple scripts."""
    return all(any(ord(char) in block for block in SIMPLE_SCRIPTS) for char in text)


def render_strips(surfaces: Sequence[str], font: Font, cell_pixels: int, augmentation: Augmentation | None) -> Pixels:
    """Pictures of tokens, 1 for ink, eight pixels to a byte in polar order: uint8 [V, P / 8].

    `augmentation=None` draws the plain glyphs. An empty surface draws an empty cell.
    """
    texts = [surface or " " for surface in surfaces]
    cells = _Cells(font.at_size(cell_pixels), cell_pixels)
    cells.draw(sorted(set().union(*texts)))
    order = polar_order(cell_pixels)
    packed = np.zeros((len(texts), cell_pixels**2 // 8), dtype=np.uint8)
    for rows, simple in _batches(texts, cell_pixels):
        strips_NSW = cells.strips([texts[row] for row in rows])
        if augmentation is not None:
            strips_NSW = augment(strips_NSW, augmentation, simple)
        ink_NSS = _squeeze(strips_NSW) < THRESHOLD
        packed[rows] = np.packbits(ink_NSS.reshape(len(rows), -1)[:, order], axis=1)
    return packed


def _batches(texts: Sequence[str], cell_pixels: int) -> Iterator[tuple[list[int], bool]]:
    """Indices of tokens of one length and one kind of script, in batches that fit in memory."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for row, text in enumerate(texts):
        groups.setdefault((len(text), is_simple(text)), []).append(row)
    for (num_characters, simple), rows in groups.items():
        step = max(1, BATCH_BYTES // (num_characters * cell_pixels**2))
        for start in range(0, len(rows), step):
            yield rows[start : start + step], simple


class _Cells:
    """Drawings of single characters, grey levels [S, S], and strips put together from them."""

    def __init__(self, faces: Faces, side: int) -> None:
        self.faces, self.side = faces, side
        self.cells: dict[str, Pixels] = {}
        self.spilling: set[str] = set()  # characters with ink outside their cell, which touches the neighbours'

    def draw(self, characters: Sequence[str]) -> None:
        """Draw characters, many to a sheet; each in the middle of a field with a cell's margin on every side."""
        side = self.side
        for start in range(0, len(characters), SHEET_COLUMNS):
            row = characters[start : start + SHEET_COLUMNS]
            fields = self._fields(row)
            self.cells.update(zip(row, fields[:, side : 2 * side, side : 2 * side].copy(), strict=True))
            beside = np.concatenate([fields[:, :, :side], fields[:, :, 2 * side :]], axis=2)
            darkest_N = beside.min(axis=(1, 2))
            self.spilling.update(char for char, level in zip(row, darkest_N, strict=True) if level < WHITE)

    def strips(self, texts: Sequence[str]) -> Pixels:
        """Strips of tokens of one length, grey levels [N, S, C * S]."""
        if len(texts[0]) == 1:
            return np.stack([self.cells[text] for text in texts])
        return np.stack(
            [self._together(text) if self.spilling.isdisjoint(text) else self._alone(text) for text in texts]
        )

    def _together(self, text: str) -> Pixels:
        return np.concatenate([self.cells[char] for char in text], axis=1)

    def _alone(self, text: str) -> Pixels:
        from PIL import Image, ImageDraw

        strip = Image.new("L", (self.side * len(text), self.side), WHITE)
        pen = ImageDraw.Draw(strip)
        for position, char in enumerate(text):
            x, y, _ = self._place(char)
            pen.text((position * self.side + x, y), char, fill=BLACK, font=self.faces.of(char))
        return np.asarray(strip)

    def _fields(self, characters: Sequence[str]) -> Pixels:
        from PIL import Image, ImageDraw

        side, pitch = self.side, 3 * self.side
        sheet = Image.new("L", (pitch * len(characters), pitch), WHITE)
        pen = ImageDraw.Draw(sheet)
        for column, char in enumerate(characters):
            x, y, fits = self._place(char)
            if fits:
                pen.text((column * pitch + side + x, side + y), char, fill=BLACK, font=self.faces.of(char))
            else:
                self.spilling.add(char)
                sheet.paste(Image.fromarray(self._alone(char)), (column * pitch + side, side))
        return np.asarray(sheet).reshape(pitch, len(characters), pitch).transpose(1, 0, 2)

    def _place(self, char: str) -> tuple[int, int, bool]:
        """Where to write a character so that its bounding box is centred, and whether it stays within its field."""
        left, top, right, bottom = (int(edge) for edge in self.faces.of(char).getbbox(char))
        x, y = (self.side - (right - left)) // 2, (self.side - (bottom - top)) // 2 - top
        fits = x + left >= -self.side and x + right <= 2 * self.side and bottom - top <= 3 * self.side
        return x, y, fits


def augment(strips_NSW: Pixels, augmentation: Augmentation, simple: bool) -> Pixels:
    """Distort strips of one length, all of them in the same way, as the published procedure does."""
    from PIL import Image, ImageFilter

    num_strips, side, width = strips_NSW.shape
    noise = augmentation.noise if simple else augmentation.noise_elsewhere
    if simple:
        with_white = np.concatenate([strips_NSW.reshape(num_strips, -1), np.full((num_strips, 1), WHITE, np.uint8)], 1)
        strips_NSW = with_white[:, _warp(side, width, augmentation)].reshape(num_strips, side, width)
    strips_NSW = np.where(np.random.RandomState(augmentation.seed).rand(side, width) < noise, BLACK, strips_NSW)
    strips_NSW = strips_NSW.astype(np.uint8)
    if simple:
        blur = ImageFilter.GaussianBlur(augmentation.blur_radius)
        strips_NSW = np.stack([np.asarray(Image.fromarray(strip).filter(blur)) for strip in strips_NSW])
    return strips_NSW


@lru_cache(maxsize=64)
def _warp(side: int, width: int, augmentation: Augmentation) -> NDArray[np.int32]:
    """Source pixel of each pixel after rotation and shift, flat [S * W]; -1 is white that moves in from outside."""
    from PIL import Image

    source = random.Random(augmentation.seed)
    angle = source.uniform(-augmentation.rotation_degrees, augmentation.rotation_degrees)
    shift_x = source.randint(-augmentation.shift_pixels, augmentation.shift_pixels)
    shift_y = source.randint(-augmentation.shift_pixels, augmentation.shift_pixels)
    index = Image.fromarray(np.arange(side * width, dtype=np.int32).reshape(side, width))
    shifted: Image.Image = Image.new("I", index.size, -1)
    shifted.paste(index.rotate(angle, expand=False, fillcolor=-1), (shift_x, shift_y))
    return np.asarray(shifted).ravel()


def _squeeze(strips_NSW: Pixels) -> Pixels:
    """Squeeze strips into one cell.

    The published code asks for bilinear interpolation of a black-and-white image, for which Pillow always takes
    the nearest pixel: the middle one of every C.
    """
    side = strips_NSW.shape[1]
    num_characters = strips_NSW.shape[2] // side
    return strips_NSW[:, :, (np.arange(side) * 2 + 1) * num_characters // 2]


@lru_cache(maxsize=8)
def polar_order(side: int) -> NDArray[np.intp]:
    """Flat pixel indices by distance from the centre, then angle, [P]."""
    middle = side // 2

    def position(pixel: int) -> tuple[int, float]:
        dy, dx = pixel // side - middle, pixel % side - middle
        return dx * dx + dy * dy, math.atan2(dy, dx)

    return np.array(sorted(range(side * side), key=position))


# What kind of writing a token is, for figures: the script of its characters, by their Unicode names.


SCRIPT_NAMES = {
    "LATIN": "Latin", "GREEK": "Greek", "CYRILLIC": "Cyrillic", "ARMENIAN": "Armenian", "GEORGIAN": "Georgian",
    "HEBREW": "Hebrew", "ARABIC": "Arabic", "SYRIAC": "Arabic", "DEVANAGARI": "Indic", "BENGALI": "Indic",
    "GURMUKHI": "Indic", "GUJARATI": "Indic", "ORIYA": "Indic", "TAMIL": "Indic", "TELUGU": "Indic", "KANNADA": "Indic",
    "MALAYALAM": "Indic", "SINHALA": "Indic", "THAI": "Thai and Lao", "LAO": "Thai and Lao", "ETHIOPIC": "Ethiopic",
    "CANADIAN": "Canadian syllabics", "YI": "Yi", "VAI": "Vai", "HANGUL": "Hangul", "HIRAGANA": "Kana",
    "KATAKANA": "Kana", "CJK": "Han", "KANGXI": "Han", "BRAILLE": "Symbols", "BOX": "Symbols",
}  # fmt: skip
UNASSIGNED, OTHER, CONTROL = "Unassigned", "Symbols", "Control tokens"


def script_of(text: str) -> str:
    """The script of the first letter of a text; `Symbols` if it has none, `Unassigned` if nothing is assigned."""
    found = UNASSIGNED
    for char in text:
        name = unicodedata.name(char, "")
        script = SCRIPT_NAMES.get(name.split(" ")[0].split("-")[0])
        if script is not None and unicodedata.category(char)[0] in "LM":
            return script
        if unicodedata.category(char) not in ("Cn", "Co", "Cs"):
            found = OTHER
    return found


def is_control_name(surface: str) -> bool:
    """Whether a surface is the name of a control token, such as `<pad>`."""
    return len(surface) > 2 and surface[0] == "<" and surface[-1] == ">" and not surface[1:-1].isspace()


def describe(surface: str) -> str:
    """A token in words: its code points, and the name of a single character."""
    points = " ".join(f"U+{ord(char):04X}" for char in surface[:6]) + (" ..." if len(surface) > 6 else "")
    if len(surface) == 1:
        return f"{points} {unicodedata.name(surface, 'without a name').lower()}"
    return f"{points} {surface if surface.isprintable() else repr(surface)}"


def runs(characters: Sequence[str]) -> list[tuple[int, int]]:
    """Consecutive code points of sorted characters as (first, last), longest runs first."""
    found: list[list[int]] = []
    for code in map(ord, characters):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return sorted(((first, last) for first, last in found), key=lambda run: (run[0] - run[1], run[0]))
