from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from benchmarks import plain_glyphs as reference
from growtx.substrate.fonts import Font, find_font
from growtx.substrate.rendering import PUBLISHED, is_simple, polar_order, render_strips
from tests.substrate.test_glyph import random_tokens

SPECIAL_CASES = [
    "\n", "a\nb", "\r", "\x00", "\t", " ", "\u0301", "a\u0301", "क्षि", "ااا", "\ufdfd", "\u200d", "ͯͯ", "é", "Ω", "Ꭺ",
    "<pad>", "<special_token_57400>", "Ｅ２", "ꧽab", "日本語", "  ",
]  # fmt: skip


@pytest.fixture(scope="module")
def font() -> Font:
    """One file, so that the reference needs no rule about which file draws what."""
    return Font(find_font().paths[:1])


@pytest.mark.parametrize(("side", "count"), [(32, 700), (64, 120)])
@pytest.mark.parametrize("augmented", [True, False])
def test_pictures_are_those_of_the_published_procedure_pixel_by_pixel(
    font: Font, side: int, count: int, augmented: bool
) -> None:
    texts = SPECIAL_CASES + random_tokens(count)
    face = ImageFont.truetype(str(font.paths[0]), side, layout_engine=ImageFont.Layout.BASIC)
    expected = np.array([reference.picture(text, face, side, augmented) for text in texts])
    found = np.unpackbits(render_strips(texts, font, side, PUBLISHED[side] if augmented else None), axis=1)
    different = [text for text, same in zip(texts, (found == expected).all(axis=1), strict=True) if not same]
    assert not different


def test_an_empty_surface_is_an_empty_cell(font: Font) -> None:
    assert not render_strips([""], font, 32, None).any()


def test_the_picture_of_a_token_does_not_depend_on_the_others(font: Font) -> None:
    texts = random_tokens(90)
    together = render_strips(texts, font, 32, PUBLISHED[32])
    alone = np.concatenate([render_strips([text], font, 32, PUBLISHED[32]) for text in texts[:20]])
    np.testing.assert_array_equal(together[:20], alone)


def test_every_character_is_drawn_by_the_first_file_that_has_it() -> None:
    weblate_fonts = pytest.importorskip("weblate_fonts")
    assert weblate_fonts
    from growtx.substrate import fonts

    (packaged,) = fonts._packaged()
    texts = ["a", "ж", "한", "汉", "\u0e01"]
    together = render_strips(texts, packaged, 32, None)
    for text, row in zip(texts, together, strict=True):
        first = next(
            path for path, known in zip(packaged.paths, packaged.characters, strict=True) if ord(text) in known
        )
        np.testing.assert_array_equal(row, render_strips([text], Font((first,)), 32, None)[0])


def test_simple_scripts_are_latin_greek_cyrillic_and_armenian() -> None:
    assert all(map(is_simple, ["a", "Ž", "Ω", "ж", "Ա", "a ж", "\n"]))
    assert not any(map(is_simple, ["中", "a中", "ا", "क", "\u1e00", "\u0250"]))


def test_polar_order_goes_outwards() -> None:
    order = polar_order(32)
    assert sorted(order) == list(range(1024)) and order[0] == 16 * 32 + 16
    radius = np.hypot(order // 32 - 16, order % 32 - 16)
    assert (np.diff(radius) >= 0).all()
