"""Small tokenizers of every family for tests, built once, from text that is written here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from growtx.data.tokenizer import TokenizerConfig, build_tokenizer, from_vocabulary
from growtx.data.vocabulary import BMP_SIZE, unicode_vocabulary

TEXTS = [
    "The river rises in the hills and reaches the sea after nine days of quiet water. " * 3,
    "Река берёт начало в холмах и впадает в море через девять дней спокойной воды. " * 3,
    "这条河发源于山中，九天之后流入大海。水很安静，山很高，海很远。" * 3,
    "<s> is text, </s> is text, and so are <pad>, <unk>, <0x41> and [INST].\r\n\tTabs, too.\r\n",
    "Café, naïve, Zoë: e\u0301 is not é. 3.14159 != 2.71828 (nearly).",
]
NGRAMS = ["th", "he", "in", "er", "the", "ing", "ре", "ка", "река", "天之", "s>", "<s", "<s>", "\r\n"]


@cache
def compact(size: int = 420) -> Any:
    """Characters and n-grams of `TEXTS`."""
    return build_tokenizer(TokenizerConfig(vocab_size=size), TEXTS)


@cache
def unicode() -> Any:
    """The basic plane and a handful of n-grams."""
    return from_vocabulary(unicode_vocabulary(NGRAMS, BMP_SIZE))


def save_byte_level(directory: Path, *, normalizer: Any = None, eos_token: str | None = "<|end|>") -> Path:
    """Save a tokenizer such as others publish: byte-level BPE that puts its end token behind every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token).save_pretrained(directory)
    return directory
