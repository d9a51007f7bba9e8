"""How fast and how densely tokenizers write the same text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from growtx.data.rank_files import GPT2_END, GPT2_WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]


def measure_tokenizers(
    tokenizers: Mapping[str, PreTrainedTokenizerFast], texts: Mapping[str, Sequence[str]]
) -> list[Row]:
    """Measure tokenizers on texts by language.

    Args:
        tokenizers: by name.
        texts: documents by language.

    Returns:
        A row per tokenizer and language: `megabytes_per_second` (UTF-8, all cores), `characters_per_token`,
        `bytes_per_token`.
    """
    return [
        {"tokenizer": name, "vocab_size": len(tokenizer), "language": language, **_measure(tokenizer, documents)}
        for name, tokenizer in tokenizers.items()
        for language, documents in texts.items()
    ]


def _measure(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> dict[str, float]:
    documents = list(documents)
    num_bytes = sum(len(document.encode()) for document in documents)
    start = time.perf_counter()
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    seconds = time.perf_counter() - start
    num_tokens = sum(len(encoding.ids) for encoding in encoded)
    return {
        "megabytes_per_second": num_bytes / 1e6 / seconds,
        "characters_per_token": sum(map(len, documents)) / num_tokens,
        "bytes_per_token": num_bytes / num_tokens,
    }


def gpt2_style(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that cuts words as GPT-2 does, trained on the given texts, for comparison."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[GPT2_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=GPT2_END)
