from __future__ import annotations

import numpy as np
import pytest

from growtx.exceptions import SubstrateError
from growtx.substrate.codes import binary_codes, binary_width, check_random_width, learned_start, random_codes


@pytest.mark.parametrize(("vocab_size", "hidden_size", "width"), [(65_536, 1024, 16), (8192, 128, 16), (8192, 26, 13)])
def test_a_code_is_the_bits_of_the_id_most_significant_first(vocab_size: int, hidden_size: int, width: int) -> None:
    codes = binary_codes(vocab_size, hidden_size)
    assert codes.shape == (vocab_size, width) and codes.dtype == np.float32
    for token in (0, 1, 5, vocab_size - 1):
        assert "".join(str(int(bit)) for bit in codes[token]) == format(token, f"0{width}b")


@pytest.mark.parametrize("vocab_size", [2, 100, 4096, 5000])
def test_the_rank_is_the_number_of_bits_and_no_two_tokens_share_a_code(vocab_size: int) -> None:
    codes = binary_codes(vocab_size, 64)
    assert np.linalg.matrix_rank(codes) == int(np.ceil(np.log2(vocab_size)))
    assert len(np.unique(codes, axis=0)) == vocab_size


def test_bits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SubstrateError, match="The 16 bits of 65536 token ids do not fit into hidden_size=8"):
        binary_width(65_536, 8)


def test_learned_vectors_start_at_length_one_and_depend_on_the_seed() -> None:
    start = learned_start(500, 256, seed=3)
    assert start.dtype == np.float32 and abs(np.linalg.norm(start, axis=1).mean() - 1) < 0.01
    np.testing.assert_array_equal(start, learned_start(500, 256, seed=3))
    assert (start != learned_start(500, 256, seed=4)).all()


@pytest.mark.parametrize("seed", range(6))
def test_recoded_bits_are_an_affine_map_of_the_ids_bits_without_collision(seed: int) -> None:
    plain, recoded = binary_codes(4096, 48).astype(int), binary_codes(4096, 48, seed).astype(int)
    assert recoded.shape == plain.shape and set(np.unique(recoded)) == {0, 1}
    assert len(np.unique(recoded, axis=0)) == 4096
    assert not np.array_equal(plain, recoded)
    # Of an affine map, f(x ^ y) = f(x) ^ f(y) ^ f(0).
    for one, other in ((1, 2), (77, 3000), (4095, 1024)):
        assert np.array_equal(recoded[one ^ other], recoded[one] ^ recoded[other] ^ recoded[0])
    assert not np.array_equal(recoded, binary_codes(4096, 48, seed + 9).astype(int))


@pytest.mark.parametrize(("vocab_size", "width"), [(2048, 11), (2000, 16), (3000, 64), (500, 1024), (65_536, 16)])
def test_no_two_random_codes_are_alike_and_they_say_nothing_of_the_id(vocab_size: int, width: int) -> None:
    codes = random_codes(vocab_size, width, 3, is_bits=True)
    assert codes.shape == (vocab_size, width) and codes.dtype == np.float32 and set(np.unique(codes)) == {0.0, 1.0}
    assert len(np.unique(codes, axis=0)) == vocab_size
    assert abs(codes.mean() - 0.5) < 0.02
    assert not np.array_equal(codes, random_codes(vocab_size, width, 4, is_bits=True))
    np.testing.assert_array_equal(codes, random_codes(vocab_size, width, 3, is_bits=True))


@pytest.mark.parametrize("width", [16, 64])
def test_random_numbers_are_centred_and_of_length_one(width: int) -> None:
    codes = random_codes(3000, width, 0, is_bits=False)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-6)
    assert np.abs(codes.mean(0)).max() < 0.01
    assert len(np.unique(codes, axis=0)) == 3000 and np.linalg.matrix_rank(codes) == width


def test_a_width_that_cannot_be_is_refused_with_those_that_can() -> None:
    with pytest.raises(SubstrateError, match=r"width=24 does not divide hidden_size=64.*Use one of 16, 32, 64"):
        check_random_width(65_536, 64, 24, is_bits=True)
    with pytest.raises(SubstrateError, match=r"width=8: 65536 tokens need 16 bits.*Use one of 16, 32, 64"):
        check_random_width(65_536, 64, 8, is_bits=True)
    check_random_width(65_536, 64, 8, is_bits=False)
