"""Packing one source: documents in, two window files and an index out. See `packing` for the format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from growtx.config import fingerprint
from growtx.data.sources import Document, Split
from growtx.data.tokenizer import tokenizer_fingerprint
from growtx.data.window_files import WindowWriter
from growtx.exceptions import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

FORMAT = 1
SPLITS: tuple[Split, Split] = ("train", "validation")
BATCH_CHARACTERS = 1 << 20  # tokenised at once: enough to keep all threads of the tokenizer busy


class SourcePacker:
    """Turns documents into windows of `context_length` tokens.

    Raises:
        DataError: the tokenizer has no <pad> or no </s>.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, context_length: int) -> None:
        if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no padding or no end-of-text token", "Set its pad_token and eos_token")
        assert context_length > 1, "a window of one token predicts nothing"
        self._encoder = _plain_encoder(tokenizer)
        self._end = tokenizer.eos_token_id
        self._made_with: dict[str, Any] = {
            "format": FORMAT,
            "context_length": context_length,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "end_token_id": tokenizer.eos_token_id,
        }

    def key(self, content: str, validation_fraction: float) -> str:
        """Name of the packed form of a source with this content."""
        return fingerprint([self._made_with, content, validation_fraction])

    def fill(self, directory: Path, documents: Iterable[Document]) -> dict[str, Any]:
        """Write `train.arrow` and `validation.arrow` into `directory` and return the index."""
        lowest = 1.0
        with ExitStack() as stack:
            writers = {split: stack.enter_context(self._writer(directory / f"{split}.arrow")) for split in SPLITS}
            for batch in _batches(documents):
                encodings = self._encoder.encode_batch_fast([item.text for item in batch], add_special_tokens=False)
                for document, encoding in zip(batch, encodings, strict=True):
                    tokens = np.array([*encoding.ids, self._end], dtype=np.int32)
                    writers[document.split].write(tokens, document.num_bytes)
                    lowest = min(lowest, document.position)
            files = {split: writer.finish() for split, writer in writers.items()}
        return {**self._made_with, "lowest_position": lowest, "files": files}

    def _writer(self, path: Path) -> WindowWriter:
        return WindowWriter(path, self._made_with["context_length"], self._made_with["pad_token_id"])


def _plain_encoder(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer's backend that neither cuts nor pads and takes special tokens in text for text."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document.text)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
