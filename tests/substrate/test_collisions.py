from __future__ import annotations

import numpy as np
import pytest

from growtx.exceptions import SubstrateError
from growtx.substrate.collisions import CODE_LENGTH, _code, first_alike, separate


def unit_rows(count: int, width: int) -> np.ndarray:
    rows = np.random.RandomState(0).standard_normal((count, width))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def test_the_first_token_with_the_same_vector_is_found() -> None:
    rows = unit_rows(3, 8)
    assert first_alike(rows[[0, 1, 0, 2, 1, 0]]).tolist() == [0, 1, 0, 3, 1, 0]


def test_separated_tokens_share_no_vector_and_the_others_keep_theirs_exactly() -> None:
    rows = unit_rows(5, 64)[[0, 1, 0, 2, 1, 0, 3, 4]]
    apart = separate(rows)
    assert len(np.unique(apart, axis=0)) == 8
    unchanged = [0, 1, 3, 6, 7]
    np.testing.assert_array_equal(apart[unchanged], rows[unchanged])


def test_a_look_alike_stays_near_what_it_looks_like() -> None:
    rows = np.repeat(unit_rows(1, 256), 50, axis=0)
    apart = separate(rows)
    cosines = (apart @ rows[0])[1:]
    np.testing.assert_allclose(np.linalg.norm(apart, axis=1), 1, atol=1e-6)
    assert abs(cosines.mean() - 1 / np.sqrt(1 + CODE_LENGTH**2)) < 0.01 and cosines.min() > 0.9


def test_the_code_of_a_token_does_not_depend_on_its_group() -> None:
    rows = unit_rows(4, 32)
    one, other = separate(rows[[0, 0, 1, 1]]), separate(rows[[0, 2, 1, 1]])
    np.testing.assert_array_equal(one[3], other[3])


def test_codes_of_few_components_are_drawn_again_until_they_differ() -> None:
    """Two hundred look-alikes have 256 codes of eight signs, and many of their first codes coincide."""
    rows = np.tile(np.array([[1.0, 0, 0, 0, 0, 0, 0, 0]], dtype=np.float32), (200, 1))
    apart = separate(rows)
    assert len(np.unique(apart, axis=0)) == 200
    assert np.array_equal(apart, separate(rows))
    assert np.array_equal(apart[:2], separate(rows[:2]))  # later tokens change nothing of earlier ones


def test_more_look_alikes_than_codes_are_refused_with_a_remedy() -> None:
    with pytest.raises(SubstrateError, match=r"components can tell apart\. Set a larger model\.hidden_size"):
        separate(np.ones((20, 4), dtype=np.float32) / 2)


def test_every_token_has_a_code_of_its_own_whatever_it_looks_like() -> None:
    codes = {_code(token, 0, 64).tobytes() for token in range(500)}
    assert len(codes) == 500 and _code(7, 0, 64).tobytes() != _code(7, 1, 64).tobytes()
