from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from growtx.data.tokenizer import token_num_bytes
from growtx.evaluate import bits_per_byte
from growtx.exceptions import DataError
from growtx.models.loss import TextScore, labels_of, score_windows


class Uniform(torch.nn.Module):
    """A causal LM of another library's kind: logits only, every token equally likely."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.vocab_size = vocab_size

    def forward(self, input_ids: torch.Tensor) -> Any:
        return type("Output", (), {"logits": torch.zeros(*input_ids.shape, self.vocab_size)})()


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_token(tokenizer: Any) -> None:
    texts = ["Anna lives in Berlin", "安娜住在柏林"]
    measured = bits_per_byte.of_documents(Uniform(400), tokenizer, texts, context_length=16)
    num_tokens = sum(len(tokenizer.encode(text)) for text in texts)
    assert measured.num_tokens == num_tokens
    assert measured.num_bytes == sum(len(text.encode()) for text in texts)
    assert measured.value == pytest.approx(num_tokens * math.log2(400) / measured.num_bytes)
    assert measured.value == pytest.approx(bits_per_byte.uniform_bits_per_byte(tokenizer, texts))


def test_windows_and_documents_agree_where_a_window_is_a_document(model: Any, tokenizer: Any) -> None:
    text = "Anna lives in Berlin and works as a teacher."
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text)]
    window_1T = torch.tensor([ids + [tokenizer.pad_token_id] * 5])
    bytes_V = torch.from_numpy(token_num_bytes(tokenizer))
    by_window = TextScore(
        *score_windows(model, window_1T, labels_of(window_1T, tokenizer.pad_token_id), bytes_V)[0].tolist()
    )
    by_document = bits_per_byte.of_documents(model, tokenizer, [text], context_length=128)
    assert by_window.num_bytes == by_document.num_bytes == len(text)
    assert by_window.bits_per_byte == pytest.approx(by_document.value, rel=1e-5)


def test_every_token_of_a_long_document_is_predicted_exactly_once(model: Any, tokenizer: Any) -> None:
    text = "Анна живёт в Берлине и работает учителем. " * 6
    num_tokens = len(tokenizer.encode(text))
    for context_length in (7, 16, num_tokens, num_tokens + 1):
        measured = bits_per_byte.of_documents(model, tokenizer, [text], context_length=context_length)
        assert measured.num_tokens == num_tokens


def test_batches_do_not_change_the_measure(model: Any, tokenizer: Any) -> None:
    texts = ["Anna", "安娜住在柏林，她是一名教师。", "Анна живёт в Берлине"]
    one, three = (
        bits_per_byte.of_documents(model, tokenizer, texts, context_length=12, batch_size=size) for size in (1, 3)
    )
    assert one.value == pytest.approx(three.value, rel=1e-5)


def test_measuring_leaves_the_training_mode_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    bits_per_byte.of_documents(model, tokenizer, ["Anna"], context_length=12)
    assert model.training
    model.eval()


def test_no_text_is_an_error_not_a_zero(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no text to measure"):
        bits_per_byte.of_documents(model, tokenizer, [""], context_length=12)


@pytest.mark.parametrize("context_length", [1, 2, 5, 8, 22, 23, 24])
def test_windows_of_a_long_document_use_the_context_that_there_is(context_length: int) -> None:
    ids = list(range(23))
    windows = list(bits_per_byte.rolling_windows(ids, context_length))
    assert [token for window in windows for token in window.ids[-window.num_scored :]] == ids[1:]
    for window in windows:
        assert window.ids == ids[window.ids[0] : window.ids[-1] + 1]
        assert len(window.ids) <= context_length + 1
        first_scored = window.ids[-window.num_scored]
        assert first_scored == window.ids[0] + 1 or window is windows[-1]
    assert len(windows[-1].ids) == min(len(ids), context_length + 1), "the last one reaches back"
