from __future__ import annotations

import random
from typing import Any

import pytest

from growtx.serving.requests import ModelInfo, Token
from growtx.serving.text import Codec, TextStream

TEXTS = [
    "plain words, and more",
    "敏捷的狐狸 лиса",
    "emoji 🦊🦊 and é",
    "ends in bytes \U0001f98a",
    "\u0000\r\n tabs\t",
]


@pytest.fixture
def codec(tokenizer: Any) -> Codec:
    json = tokenizer.backend_tokenizer.to_str()
    return Codec(ModelInfo(json, len(tokenizer), 64, (), (), (), start_token_id=tokenizer.eos_token_id))


def stream_in_pieces(codec: Codec, text: str, stop: tuple[str, ...] = (), seed: int = 0) -> tuple[str, str | None, Any]:
    """Text, finish reason and tokens of `text` sent in random portions."""
    ids = codec.encode(text)
    assert ids is not None
    tokens = [Token(token_id) for token_id in ids[1:]]
    tokens[-1] = Token(tokens[-1].id, finish_reason="length")
    stream, sent, released = TextStream(codec, stop), "", []
    generator = random.Random(seed)
    while tokens:
        size = generator.randint(1, 3)
        piece = stream.push(tokens[:size])
        tokens = tokens[size:]
        sent += piece.text
        released += piece.tokens
        if piece.finish_reason:
            return sent, piece.finish_reason, released
    raise AssertionError("the stream did not finish")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", range(3))
def test_pieces_join_to_the_text(codec: Codec, text: str, seed: int) -> None:
    sent, reason, released = stream_in_pieces(codec, text, seed=seed)
    assert (sent, reason) == (text, "length")
    assert len(released) == len(codec.encode(text) or ()) - 1


@pytest.mark.parametrize("seed", range(5))
def test_text_ends_before_a_stop_sequence_however_it_is_cut(codec: Codec, seed: int) -> None:
    assert stream_in_pieces(codec, "one, two; three. four", ("; three", "four"), seed)[:2] == ("one, two", "stop")
    assert stream_in_pieces(codec, "aab aaab b", ("aaab",), seed)[:2] == ("aab ", "stop")
    assert stream_in_pieces(codec, "лиса 🦊 end", ("🦊",), seed)[:2] == ("лиса ", "stop")


def test_an_unfinished_stop_sequence_is_sent_in_the_end(codec: Codec) -> None:
    assert stream_in_pieces(codec, "almost sto", ("stop",))[:2] == ("almost sto", "length")


def test_offsets_say_where_tokens_begin(codec: Codec) -> None:
    _, _, released = stream_in_pieces(codec, "лиса the fox")
    for token, offset in released:
        assert "лиса the fox".startswith(codec.name(token.id), offset)


def test_a_text_that_cannot_fit_is_not_even_encoded(codec: Codec) -> None:
    assert codec.encode("x" * 1_000_000) is None


def test_text_that_spells_a_special_token_is_text(codec: Codec) -> None:
    ids = codec.encode("</s>")
    assert ids is not None
    assert ids.count(codec.start_token_id) == 1


def test_of_stop_sequences_that_end_together_the_one_that_began_first_counts(codec: Codec) -> None:
    for stop in (("o th", " th"), (" th", "o th")):
        for seed in range(5):
            assert stream_in_pieces(codec, "two three", stop, seed)[:2] == ("tw", "stop")


def test_a_stop_sequence_before_enough_tokens_is_text(codec: Codec) -> None:
    ids = codec.spell("abcabcabc")
    for min_tokens in (0, 2, 4, len(ids) + 1):
        stream, sent, reason = TextStream(codec, ("bc",), min_tokens=min_tokens), "", None
        for number, token in enumerate(ids, start=1):
            piece = stream.push([Token(token, finish_reason="length" if number == len(ids) else None)])
            sent, reason = sent + piece.text, piece.finish_reason
            if reason:
                break
        assert reason == ("length" if min_tokens > len(ids) else "stop")
        assert "abcabcabc".startswith(sent)
        assert number >= min_tokens or reason == "length"
