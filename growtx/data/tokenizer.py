"""Tokenizers: built from a vocabulary, lossless on every Unicode text, usable without this package.

The result is an ordinary Hugging Face fast tokenizer: BPE over characters without normalizer or pre-tokenizer,
so that what is decoded is what was encoded, byte for byte. Text that spells a special token is text: control
tokens are only parsed when the caller asks with `split_special_tokens=False`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from growtx.config import ConfigModel, fingerprint
from growtx.data import surface
from growtx.data.ngrams import embedded_ngrams
from growtx.data.rank_files import is_rank_file, tokenizer_from_ranks
from growtx.data.vocabulary import (
    BMP_SIZE,
    EOS,
    PAD,
    UNK,
    Vocabulary,
    compact_vocabulary,
    unicode_vocabulary,
)
from growtx.exceptions import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from growtx.data.sources import DataConfig

COMPACT_SIZE = 8192
INCOMPLETE = "\ufffd"  # what a decoder puts for bytes that are not a character
MAX_BYTES_OF_A_CHARACTER = 4
Family = Literal["compact", "unicode-2-3", "unicode-max", "surface"]
PUBLISHED_SIZES = {"unicode-2-3": BMP_SIZE, "unicode-max": 2 * BMP_SIZE}
LONGEST_NGRAM = {"unicode-2-3": 3, "unicode-max": 5}


class TokenizerConfig(ConfigModel):
    """Which vocabulary text is cut into."""

    family: Family = Field(default="compact", description="how the vocabulary is made")
    vocab_size: int | None = Field(default=None, ge=1, description="number of ids; default as published, or 8192")
    path: str | None = Field(
        default=None, description="surface: directory of a Hugging Face tokenizer, or a .tiktoken or tekken.json file"
    )
    ngrams: Literal["embedded", "counted"] = Field(
        default="embedded", description="unicode families: n-grams of 33 languages, or counted over data.sources"
    )
    common_to: tuple[str, ...] = Field(
        default=(), description="unicode families: directories of tokenizers whose common strings come first"
    )
    max_characters: int = Field(default=8, ge=2, le=32, description="compact: length of the longest n-gram")
    max_training_bytes: int = Field(default=20_000_000, ge=1, description="compact: bytes of text to sample for it")

    @model_validator(mode="after")
    def _keys_belong_to_the_family(self) -> TokenizerConfig:
        if (self.family == "surface") != (self.path is not None):
            raise ValueError("path names the tokenizer of family=surface: set both or neither")
        if self.family == "surface" and self.vocab_size is not None:
            raise ValueError("vocab_size cannot be set with family=surface, whose tokenizer has its own")
        if self.family not in PUBLISHED_SIZES and (self.common_to or self.ngrams != "embedded"):
            raise ValueError("ngrams and common_to belong to the unicode families: leave them out")
        return self


def build_tokenizer(
    config: TokenizerConfig, texts: Iterable[str] | None = None, data: DataConfig | None = None
) -> PreTrainedTokenizerFast:
    """A lossless fast tokenizer.

    Args:
        config: the family and its size.
        texts: documents for family `compact`.
        data: sources for `ngrams=counted`, which runs a Ray Data job.

    Raises:
        ConfigError: for a size that the family cannot have.
        DataError: if text is needed and missing, or `config.path` holds no usable tokenizer.
    """
    if config.family == "surface":
        assert config.path is not None
        return load_tokenizer(config.path)
    if config.family == "compact":
        if texts is None:
            raise DataError("A compact vocabulary is made from text, and none was given", "Set data.sources")
        size = config.vocab_size or COMPACT_SIZE
        return from_vocabulary(
            compact_vocabulary(texts, size, max_characters=config.max_characters, max_bytes=config.max_training_bytes)
        )
    size = config.vocab_size or PUBLISHED_SIZES[config.family]
    return from_vocabulary(unicode_vocabulary(_ngrams(config, data), size))


def _ngrams(config: TokenizerConfig, data: DataConfig | None) -> list[str]:
    """The n-grams that a unicode vocabulary is offered, most wanted first."""
    longest = LONGEST_NGRAM[config.family]
    if config.ngrams == "embedded":
        listed = embedded_ngrams(longest)
    else:
        from growtx.data.ngrams import counted_ngrams

        if data is None:
            raise DataError("tokenizer.ngrams=counted needs text to count in", "Set data.sources")
        listed = counted_ngrams(data, longest)
    return [*_common_strings(config.common_to), *listed]


def _common_strings(paths: Sequence[str]) -> list[str]:
    """Strings of two or more characters that are tokens of every named tokenizer, the shortest first."""
    vocabularies = [{surface.text(token) for token in surface.tokens(load_tokenizer(path))} for path in paths]
    common = set.intersection(*vocabularies) if vocabularies else set()
    return sorted((text for text in common if text and len(text) > 1), key=lambda text: (len(text), text))


def from_vocabulary(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a vocabulary. `</s>` begins and ends documents; `<s>` keeps its published id, unused."""
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
        bos_token=EOS,  # what stands before a document is what ends the one before it; see `start_token_id`
        eos_token=EOS,
        unk_token=UNK,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """A saved Hugging Face fast tokenizer, or one published as ranks, checked to be readable and lossless.

    Raises:
        DataError: if there is none at `path`, it is damaged, or it does not give back the text it was given.
    """
    from transformers import AutoTokenizer

    if is_rank_file(path):
        return _complete(tokenizer_from_ranks(path), path)
    if not (Path(path) / "tokenizer.json").is_file():
        remedy = "Name the directory of a Hugging Face fast tokenizer, or a .tiktoken or tekken.json file"
        raise DataError(f"{path} has no tokenizer.json", remedy)
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
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.backend_tokenizer.post_processor = None  # nothing is put around a text unasked
    for probe in PROBES:
        if tokenizer.decode(tokenizer.encode(probe, add_special_tokens=False)) != probe:
            raise DataError(f"The tokenizer in {path} changes text such as {probe!r}", "Use one without a normalizer")
    fallback = tokenizer.eos_token or tokenizer.bos_token or tokenizer.pad_token
    if fallback is None:
        raise DataError(
            f"The tokenizer in {path} has no end-of-text token", 'Add "eos_token": "..." to its tokenizer_config.json'
        )
    for role in ("eos_token", "pad_token"):
        if getattr(tokenizer, role) is None:
            setattr(tokenizer, role, fallback)
    tokenizer.bos_token = tokenizer.eos_token  # whatever others trained it with: packing puts eos between documents
    return tokenizer  # type: ignore[no-any-return]


def start_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that stands before every document.

    Packing ends each document with the end-of-text token, which therefore precedes the next one: that is what training
    has seen, and what everything that begins a text puts before it (bits per byte, samples, `growtx generate`, the
    endpoint, lm-eval's prefix, `model.generate()` without input). `from_vocabulary` and `load_tokenizer` see to it
    that `bos_token` is this token; a tokenizer does not add it by itself, as GPT-2's does not.
    """
    found: int = tokenizer.bos_token_id
    return found


def document_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a document from its start token on; text that spells a special token is text."""
    return [start_token_id(tokenizer), *tokenizer.encode(text, add_special_tokens=False, verbose=False)]


def visible_text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], *, after: Sequence[int] = ()) -> str:
    """What a person sees of tokens that continue others: no special tokens, no half of a character at the end.

    Args:
        after: the ids before them; some tokenizers spell a token differently at the beginning of a text.
    """
    before = str(tokenizer.decode(list(after), skip_special_tokens=True))
    whole = str(tokenizer.decode([*after, *ids], skip_special_tokens=True))
    text = (
        whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(list(ids), skip_special_tokens=True))
    )
    return text[: len(text.rstrip(INCOMPLETE))] if _ends_inside_a_character(tokenizer, ids) else text


def _ends_inside_a_character(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> bool:
    """Whether the last tokens spell the beginning of a character, and not a replacement character themselves."""
    known = surface.tokens(tokenizer)
    spelled = b"".join(known[index].spelled or b"" for index in ids[-MAX_BYTES_OF_A_CHARACTER:])
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(spelled, final=False)
    return bool(decoder.getstate()[0])


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of what decides the ids of a text: see `surface.definition`."""
    return fingerprint(surface.definition(tokenizer))


def token_surfaces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What each id draws [V]: its text, the name of a special token, or the hex digits of bytes that are no text."""
    return [surface.drawn(token) for token in surface.tokens(tokenizer)]


def token_num_bytes(tokenizer: PreTrainedTokenizerFast) -> np.ndarray[Any, np.dtype[np.int32]]:
    """UTF-8 bytes that each id contributes to decoded text, int32 [V]; 0 for special tokens."""
    return np.array([surface.num_bytes(token) for token in surface.tokens(tokenizer)], dtype=np.int32)
