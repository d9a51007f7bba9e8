"""Bits per byte: how well a model compresses text, comparable between tokenizers, vocabularies and languages.

    bits per byte = (nats of all predicted tokens / ln 2) / UTF-8 bytes that these tokens stand for

The tokens `</s>` between documents are predicted too: they cost bits and are worth no bytes.

Shapes: N windows, B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from growtx.data.tokenizer import document_ids, token_num_bytes
from growtx.evaluate.intervals import Interval, bootstrap_ratio
from growtx.exceptions import DataError
from growtx.models.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class BitsPerByte:
    """Bits per byte with its 95 % interval over windows or documents, and what it was measured on."""

    interval: Interval
    loss: float  # nats per token
    num_tokens: int
    num_bytes: int

    @property
    def value(self) -> float:
        return self.interval.value


def of_documents(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    context_length: int,
    batch_size: int = 8,
    seed: int = 0,
) -> BitsPerByte:
    """Bits per byte of whole documents, each after the start token as in training.

    A document longer than the context is cut into the windows of lm-eval's rolling log-likelihood: every token is
    predicted exactly once, and the last window has its full context.

    Raises:
        DataError: no text.
    """
    windows, owners = [], []
    for number, text in enumerate(texts):
        for window in rolling_windows(document_ids(tokenizer, text), context_length):
            windows.append(window)
            owners.append(number)
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
    by_length = sorted(range(len(windows)), key=lambda index: len(windows[index].ids))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        nll_BT, labels_BT = _padded_nll(model, [windows[index] for index in batch])
        for row, index in enumerate(batch):
            nats[owners[index]] += float(nll_BT[row].double().sum())
            tokens[owners[index]] += int((labels_BT[row, 1:] != IGNORE_INDEX).sum())
    num_bytes = np.array([len(text.encode()) for text in texts], dtype=np.float64)
    return _summary(nats, tokens, num_bytes, seed)


class Window(NamedTuple):
    """A piece of a document: its ids, of which the last `num_scored` are predicted by what stands before them."""

    ids: list[int]
    num_scored: int


def rolling_windows(ids: Sequence[int], context_length: int) -> Iterator[Window]:
    """Cut a document, its start token first, so that every other token is predicted once.

    A window has at most `context_length` tokens before its last one, which is what a model of that context can read.
    All but the last are disjoint; the last one reaches back as far as the context allows.
    """
    done = 1
    while done < len(ids):
        num_scored = min(len(ids) - done, context_length)
        end = done + num_scored
        yield Window(list(ids[max(0, end - context_length - 1) : end]), num_scored)
        done = end


@torch.no_grad()
def token_nll(model: torch.nn.Module, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Nats [B, T-1] of the tokens at positions 1..T-1, 0 where the label is ignored; for any causal LM."""
    was_training = model.training
    model.eval()
    try:
        if str(getattr(getattr(model, "config", None), "model_type", "")).startswith("growtx"):
            return model(input_ids=ids_BT, labels=labels_BT, skip_logits=True).token_nll  # type: ignore[no-any-return]
        logits_BTV = model(input_ids=ids_BT[:, :-1]).logits.float()  # the last token is only predicted
        return F.cross_entropy(
            logits_BTV.transpose(1, 2), labels_BT[:, 1:], ignore_index=IGNORE_INDEX, reduction="none"
        )
    finally:
        model.train(was_training)


def uniform_bits_per_byte(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Bits per byte of a model that knows nothing: every token of the vocabulary equally likely."""
    num_tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return num_tokens * math.log2(len(token_num_bytes(tokenizer))) / sum(len(text.encode()) for text in texts)


def _padded_nll(model: torch.nn.Module, windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats [B, T] and labels [B, T+1] of windows of unequal length, padded on the right (causal: no mask needed).

    The model reads all but the last token of a window, so that a window may have one token more than the context.
    """
    length = max(2, *(len(window.ids) for window in windows))
    ids_BT = torch.zeros(len(windows), length, dtype=torch.int64)
    labels_BT = torch.full_like(ids_BT, IGNORE_INDEX)
    for row, (window, num_scored) in enumerate(windows):
        ids_BT[row, : len(window)] = torch.tensor(window)
        labels_BT[row, len(window) - num_scored : len(window)] = torch.tensor(window[-num_scored:])
    device = next(model.parameters()).device
    return token_nll(model, ids_BT.to(device), labels_BT.to(device)), labels_BT


def _summary(nats: npt.NDArray[Any], tokens: npt.NDArray[Any], num_bytes: npt.NDArray[Any], seed: int) -> BitsPerByte:
    if not tokens.sum() or not num_bytes.sum():
        raise DataError("There is no text to measure bits per byte on", "Give documents that are not empty")
    return BitsPerByte(
        interval=bootstrap_ratio(nats / math.log(2), num_bytes, seed),
        loss=float(nats.sum() / tokens.sum()),
        num_tokens=int(tokens.sum()),
        num_bytes=int(num_bytes.sum()),
    )
