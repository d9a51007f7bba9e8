from __future__ import annotations

import pytest

from growtx.data.tokenizer import from_vocabulary
from growtx.data.vocabulary import (
    BMP_SIZE,
    BYTE_TOKENS,
    MANDATORY_TOKENS,
    SPECIAL_TOKENS,
    compact_vocabulary,
    merges_of_ngrams,
    unicode_vocabulary,
)
from growtx.exceptions import ConfigError, DataError
from tests.data.small_tokenizers import NGRAMS, TEXTS


def compact(texts: list[str], size: int, max_characters: int = 8, max_bytes: int = 10**6) -> tuple[str, ...]:
    return compact_vocabulary(texts, size, max_characters=max_characters, max_bytes=max_bytes).tokens


class TestUnicodeVocabulary:
    def test_ids_are_code_points_and_special_tokens_have_the_published_ids(self) -> None:
        tokens = unicode_vocabulary(NGRAMS, BMP_SIZE).tokens
        assert len(tokens) == 65_536
        assert all(tokens[code] == chr(code) for code in [*range(0xD800), *range(0xF900, 0xFFFF)])
        assert tokens[57344:57348] == SPECIAL_TOKENS == ("<pad>", "<s>", "</s>", "<unk>")
        assert set(BYTE_TOKENS) <= set(tokens)

    def test_ngrams_live_where_no_character_can(self) -> None:
        tokens = unicode_vocabulary(NGRAMS, BMP_SIZE).tokens
        ids = {token: code for code, token in enumerate(tokens)}
        assert all(0xD800 <= ids[gram] < 0xE000 or 0xE200 <= ids[gram] < 0xF900 for gram in NGRAMS if gram != "<s>")

    def test_free_ids_are_filled_with_the_most_wanted_ngrams(self) -> None:
        pairs = [chr(0x4E00 + index) + chr(0x4E01 + index) for index in range(9000)]
        tokens = set(unicode_vocabulary(pairs, BMP_SIZE).tokens)
        num_free = 0x800 + 0x1700
        assert [pair in tokens for pair in pairs] == [True] * num_free + [False] * (9000 - num_free)

    def test_a_larger_size_adds_ngrams_above_the_basic_plane(self) -> None:
        pairs = [chr(0x4E00 + index) + chr(0x4E01 + index) for index in range(9000)]
        tokens = unicode_vocabulary(pairs, 2 * BMP_SIZE).tokens
        assert len(tokens) == 131_072 and set(pairs) <= set(tokens)
        assert any(token in pairs for token in tokens[BMP_SIZE:])

    def test_names_of_control_tokens_and_bytes_never_become_ngrams(self) -> None:
        vocabulary = unicode_vocabulary(["<s", "<s>", "</", "</s", "</s>"], BMP_SIZE)
        assert ("<s", ">") not in vocabulary.merges and ("</s", ">") not in vocabulary.merges

    def test_it_owns_the_whole_plane(self) -> None:
        with pytest.raises(ConfigError, match="too small for the unicode families"):
            unicode_vocabulary(NGRAMS, BMP_SIZE - 1)


class TestMergesOfNgrams:
    def test_every_chosen_ngram_is_one_token_on_its_own(self) -> None:
        ngrams = ["ab", "bc", "cd", "de", "abc", "abcd", "cde", "abcde", "bcd"]
        merges = merges_of_ngrams(ngrams, 100)
        tokenizer = from_vocabulary(unicode_vocabulary(ngrams, BMP_SIZE))
        reached = {left + right for left, right in merges}
        assert reached == set(ngrams)
        assert all(len(tokenizer.encode(gram)) == 1 for gram in reached)

    def test_an_ngram_that_others_tear_apart_leaves_its_place_to_the_next(self) -> None:
        # `abcd` would need `abc`, which needs `ab`; but `bc` is more urgent than `ab` and nothing joins `a` to it.
        ngrams = ["bc", "ab", "cd", "abcd", "xy"]
        chosen = {left + right for left, right in merges_of_ngrams(ngrams, 4)}
        assert chosen == {"bc", "ab", "cd", "xy"}

    def test_an_ngram_without_parts_is_left_out(self) -> None:
        assert merges_of_ngrams(["wxyz", "ab"], 2) == (("a", "b"),)

    def test_longer_results_are_more_urgent(self) -> None:
        tokenizer = from_vocabulary(unicode_vocabulary(["he", "th", "the", "en"], BMP_SIZE))
        assert tokenizer.tokenize("then") == ["the", "n"]


class TestCompactVocabulary:
    @pytest.mark.parametrize("size", [300, 420])
    def test_it_has_exactly_the_size_asked_for(self, size: int) -> None:
        tokens = compact(TEXTS, size)
        assert len(tokens) == size and tokens[: len(MANDATORY_TOKENS)] == MANDATORY_TOKENS

    def test_it_keeps_what_the_text_needs(self) -> None:
        tokens = compact(TEXTS, 500)
        assert {"e", "е", "水"} <= set(tokens) and " the" in tokens

    def test_no_ngram_is_longer_than_asked(self) -> None:
        tokens = compact(TEXTS, 400, max_characters=4)
        assert max(len(token) for token in tokens[len(MANDATORY_TOKENS) :]) == 4

    def test_names_of_control_tokens_in_the_text_do_not_become_ngrams(self) -> None:
        texts = [*TEXTS, "<s> </s> <pad> <0x41> " * 100]
        vocabulary = compact_vocabulary(texts, 420, max_characters=8, max_bytes=10**6)
        assert not {left + right for left, right in vocabulary.merges} & set(MANDATORY_TOKENS)

    def test_a_large_text_is_sampled_evenly(self) -> None:
        texts = [f"alpha{index} " * 5 for index in range(400)] + [f"omega{index} " * 5 for index in range(400)]
        tokens = compact(texts, 320, max_bytes=8000)
        assert any("alph" in token for token in tokens) and any("omeg" in token for token in tokens)

    @pytest.mark.parametrize("size", [1, 256, 261])
    def test_a_size_without_room_for_characters_is_refused(self, size: int) -> None:
        with pytest.raises(ConfigError, match="is too small"):
            compact(TEXTS, size)

    def test_too_little_text_is_refused_with_what_to_change(self) -> None:
        with pytest.raises(DataError, match=r"only \d+ characters and n-grams"):
            compact(["abc"], 8192)

    @pytest.mark.parametrize("texts", [[], [""]])
    def test_no_text_is_refused(self, texts: list[str]) -> None:
        with pytest.raises(DataError, match="no text"):
            compact(texts, 300)

    def test_a_lone_surrogate_is_refused(self) -> None:
        with pytest.raises(DataError, match="lone surrogate"):
            compact(["a\ud800b"], 300)
