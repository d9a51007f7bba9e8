from __future__ import annotations

import numpy as np
import pytest

from growtx.exceptions import SubstrateError
from growtx.substrate.codes import binary_codes, binary_width, learned_start


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
