"""Tokenizers: built from a vocabulary, lossless on every Unicode text, usable without this package.

The result is an ordinary Hugging Face fast tokenizer: BPE over characters without normalizer or pre-tokenizer,
so that what is decoded is what was encoded, byte for byte. Text that spells a special token is text: control
tokens are only parsed when the caller asks with `split_special_tokens=False`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from growtx.config import ConfigModel, fingerprint
from growtx.data import surface
from growtx.data.vocabulary import (
    BMP_SIZE,
    BOS,
    EOS,
    PAD,
    UNK,
    Vocabulary,
    compact_vocabulary,
    unicode_vocabulary,
)
from growtx.exceptions import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Family = Literal["compact", "unicode-2-3", "unicode-max", "surface"]
PUBLISHED_SIZES = {"unicode-2-3": BMP_SIZE, "unicode-max": 2 * BMP_SIZE}
LONGEST_NGRAM = {"unicode-2-3": 3, "unicode-max": 5}


class TokenizerConfig(ConfigModel):
    """Which vocabulary text is cut into."""

    family: Family = Field(default="compact", description="how the vocabulary is made")
    vocab_size: int | None = Field(
        default=None, ge=1, description="number of ids; default 8192 (compact) or as published"
    )
    path: str | None = Field(default=None, description="directory of a Hugging Face tokenizer to use (surface)")
    max_characters: int = Field(default=6, ge=2, le=32, description="longest n-gram of a compact vocabulary")
    max_training_bytes: int = Field(default=20_000_000, ge=1, description="text read to build a compact vocabulary")

    @model_validator(mode="after")
    def _path_belongs_to_surface(self) -> TokenizerConfig:
        if (self.family == "surface") != (self.path is not None):
            raise ValueError("path names the tokenizer of family=surface; set both or neither")
        return self


def build_tokenizer(config: TokenizerConfig, texts: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """A lossless fast tokenizer.

    Args:
        config: the family and its size.
        texts: documents for family `compact`; the unicode families need none.

    Raises:
        ConfigError: for a size that the family cannot have.
        DataError: if texts are needed and missing, or `config.path` holds no usable tokenizer.
    """
    if config.family == "surface":
        assert config.path is not None
        return load_tokenizer(config.path)
    if config.family == "compact":
        if texts is None:
            raise DataError("A compact vocabulary is made from text, and there is none", "Set data.sources")
        vocabulary = compact_vocabulary(
            texts,
            config.vocab_size or 8192,
            max_characters=config.max_characters,
            max_training_bytes=config.max_training_bytes,
        )
    else:
        from growtx.data.ngrams import embedded_ngrams

        size = config.vocab_size or PUBLISHED_SIZES[config.family]
        vocabulary = unicode_vocabulary(embedded_ngrams(LONGEST_NGRAM[config.family]), size)
    return from_vocabulary(vocabulary)


def from_vocabulary(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a vocabulary, with `<pad>`, `<s>`, `</s>` and `<unk>` set."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    model = models.BPE(vocab=ids, merges=list(vocabulary.merges), unk_token=UNK, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in vocabulary.special_tokens])
    tokenizer.encode_special_tokens = True
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """A saved Hugging Face fast tokenizer, checked to be readable and lossless.

    Raises:
        DataError: if the directory has none, it is damaged, or it does not give back the text it was given.
    """
    from transformers import AutoTokenizer

    if not (Path(path) / "tokenizer.json").is_file():
        raise DataError(f"{path} has no tokenizer.json", "Name the directory of a Hugging Face fast tokenizer")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, split_special_tokens=True)
    except Exception as error:  # the libraries below raise bare `Exception` for a damaged file
        detail = " ".join(str(error).split())[:200]
        raise DataError(f"The tokenizer in {path} cannot be read: {detail}", "Save or copy it again") from error
    return _complete(tokenizer, path)


PROBES = (
    "  two  spaces ",
    "e\u0301 \u00e9 \ufb01",
    "\x00\r\n\t",
    "\U0001f600\u200d\ufffd",
    "<s></s> don 't . ,",
    "\ue000",
)


def _complete(tokenizer: Any, path: str) -> PreTrainedTokenizerFast:
    """Check losslessness, and let roles that the tokenizer does not have share its end token."""
    tokenizer.clean_up_tokenization_spaces = False
    for probe in PROBES:
        if tokenizer.decode(tokenizer.encode(probe, add_special_tokens=False)) != probe:
            raise DataError(f"The tokenizer in {path} changes text such as {probe!r}", "Use one without a normalizer")
    fallback = tokenizer.eos_token or tokenizer.bos_token or tokenizer.pad_token
    if fallback is None:
        raise DataError(f"The tokenizer in {path} has no end-of-text token", "Add one with its eos_token")
    for role in ("eos_token", "bos_token", "pad_token"):
        if getattr(tokenizer, role) is None:
            setattr(tokenizer, role, fallback)
    return tokenizer  # type: ignore[no-any-return]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of what decides the ids of a text: tokenizer.json without the state that a call leaves behind."""
    return fingerprint(surface.definition(tokenizer))


def token_surfaces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What each id draws [V]: its text, the name of a special token, or the hex digits of bytes that are no text."""
    return [surface.drawn(token) for token in surface.tokens(tokenizer)]


def token_num_bytes(tokenizer: PreTrainedTokenizerFast) -> np.ndarray[Any, np.dtype[np.int32]]:
    """UTF-8 bytes that each id contributes to decoded text, int32 [V]; 0 for special tokens."""
    return np.array([surface.num_bytes(token) for token in surface.tokens(tokenizer)], dtype=np.int32)
