from __future__ import annotations

import random

import numpy as np
import pytest

from benchmarks import plain_glyphs as reference
from growtx.exceptions import SubstrateError
from growtx.substrate.fonts import find_font
from growtx.substrate.glyph import principal_components
from growtx.substrate.rendering import PUBLISHED, Pixels, render_strips
from tests.data.small_tokenizers import NGRAMS


def random_tokens(count: int) -> list[str]:
    """Characters of all scripts and n-grams such as vocabularies have."""
    source = random.Random(0)
    characters = [chr(code) for code in source.sample([*range(0x20, 0xD800), *range(0xF900, 0xFFFF)], count)]
    letters = [char for block in ("abcdefgh", "абвгдеж", "天地玄黄宇宙", "नमस्ते", "αβγδε") for char in block]
    ngrams = ["".join(source.choices(letters, k=source.randint(2, 5))) for _ in range(count // 3)]
    return list(dict.fromkeys([*NGRAMS, "<pad>", "<reserved_57348>", "\n", "Ｅ２", *ngrams, *characters]))[:count]


def random_pictures(count: int, num_pixels: int, seed: int = 0) -> Pixels:
    return np.random.RandomState(seed).randint(0, 256, size=(count, num_pixels // 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def pictures() -> Pixels:
    return render_strips(random_tokens(2000), find_font(), 32, PUBLISHED[32])


@pytest.mark.parametrize(("num_tokens", "num_components"), [(2000, 1024), (600, 128)])
def test_the_geometry_of_tokens_is_that_of_the_reference(
    pictures: Pixels, num_tokens: int, num_components: int
) -> None:
    pictures = pictures[:num_tokens]
    expected = reference.vectors(np.unpackbits(pictures, axis=1).astype(np.float64), num_components)
    found = principal_components(pictures, num_components)
    assert found.dtype == np.float32 and found.shape == (num_tokens, num_components)
    assert np.abs(found @ found.T - expected @ expected.T).max() < 1e-4


def test_rows_have_length_one(pictures: Pixels) -> None:
    for num_components in (1024, 100, 1):
        lengths = np.linalg.norm(principal_components(pictures[:300], num_components).astype(np.float64), axis=1)
        assert np.abs(lengths - 1).max() < 1e-6


def test_components_are_ordered_by_variance_and_fewer_are_the_first(pictures: Pixels) -> None:
    pictures = pictures[:300]
    many, few = principal_components(pictures, 64).astype(np.float64), principal_components(pictures, 16)
    scaled = many[:, :16] / np.linalg.norm(many[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(scaled, few, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [63, 64, 65, 200])
def test_more_or_fewer_tokens_than_pixels_make_no_difference(num_tokens: int) -> None:
    packed = random_pictures(num_tokens, 64)
    expected = reference.vectors(np.unpackbits(packed, axis=1).astype(np.float64), 64)
    found = principal_components(packed, 64)
    assert np.abs(found @ found.T - expected @ expected.T).max() < 1e-5


def test_a_vocabulary_larger_than_a_chunk_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = random_pictures(500, 64)
    whole = principal_components(packed, 32)
    monkeypatch.setattr("growtx.substrate.glyph.CHUNK_BYTES", 64 * 8 * 33)
    np.testing.assert_array_equal(principal_components(packed, 32), whole)


def test_more_components_than_pixels_are_refused(pictures: Pixels) -> None:
    with pytest.raises(SubstrateError, match=r"1024 pixels lacks the 1025 components.*cell_pixels=64"):
        principal_components(pictures, 1025)


def test_tokens_that_all_look_the_same_are_refused() -> None:
    with pytest.raises(SubstrateError, match="look exactly like the average"):
        principal_components(np.full((20, 8), 7, dtype=np.uint8), 4)
