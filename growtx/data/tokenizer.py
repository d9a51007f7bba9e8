"""Tokenizers: built from a vocabulary, lossless on every Unicode text, usable without this package.

The result is an ordinary Hugging Face fast tokenizer: BPE over characters without normalizer or pre-tokenizer,
so that what is decoded is what was encoded, byte for byte. Text that spells a special token is text: control
tokens are only parsed when the caller asks with `split_special_tokens=False`.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from growtx.generator import IntArray, WordArray, mix64

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


# Encoding whole corpora.
#
# Shapes: C characters of some texts one after the other, P pieces that they are cut into.


MOST_KEPT = 1 << 19  # pieces whose tokens are remembered
MOST_TOKENS_KEPT = 1 << 23
TABLE_BITS = 20
CHARACTERS_OF_A_GROUP = 4096  # of new pieces: the library takes n log n time for a text of n characters
CHARACTERS_AT_ONCE = 1 << 20

Ids = np.ndarray[Any, np.dtype[np.int32]]


def encoder_definition(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer as text, from which any process makes an `Encoder` without the library of models."""
    return str(tokenizer.backend_tokenizer.to_str())


class Encoder:
    """Tokens of many texts; what spells a special token is plain text.

    Where a tokenizer has no pre-tokenizer, as ours, the library merges every text as one long word and remembers
    nothing. But no merge crosses the place before a character that stands nowhere but at the start of merged tokens:
    texts are cut there, and the tokens of each piece are remembered. The tokens are the same, and sooner found. Pieces
    are looked up by hashes of 64 bits.
    """

    def __init__(self, definition: str) -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(definition)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        tree = json.loads(definition)
        self._continuing = _continuing_characters(tree)
        if self._continuing is not None:
            self._continues = np.zeros(sys.maxunicode + 1, dtype=bool)
            self._continues[[ord(character) for character in self._continuing]] = True
            self._num_bytes = _bytes_of_tokens(tree["model"]["vocab"])
            self.known = _Pieces()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The tokens of each text: int32 [n]."""
        if self._continuing is None:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        found: list[list[Ids]] = [[] for _ in texts]
        for numbers, stretches in self._batches(texts):
            for number, ids in zip(numbers, self._encode(stretches), strict=True):
                found[number].append(ids)
        return [parts[0] if len(parts) == 1 else np.concatenate([_NOTHING, *parts]) for parts in found]

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
        """Stretches of texts, with the number of each text; bounded, however long a text is."""
        numbers: list[int] = []
        batch: list[str] = []
        num_characters = 0
        for number, text in enumerate(texts):
            for stretch in self._stretches(text):
                numbers.append(number)
                batch.append(stretch)
                num_characters += len(stretch)
                if num_characters >= CHARACTERS_AT_ONCE:
                    yield numbers, batch
                    numbers, batch, num_characters = [], [], 0
        if batch:
            yield numbers, batch

    def _stretches(self, text: str) -> Iterator[str]:
        """A text in parts that begin where it may be cut."""
        start = 0
        while len(text) - start > CHARACTERS_AT_ONCE:
            size = CHARACTERS_AT_ONCE
            while start + size < len(text) and self._continues[ord(text[start + size])]:
                size += 1
            yield text[start : start + size]
            start += size
        if start < len(text):
            yield text[start:]

    def _encode(self, texts: list[str]) -> list[Ids]:
        text = "".join(texts)
        codes_C = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        begins_C = ~self._continues[codes_C]
        text_ends = np.cumsum([len(each) for each in texts])
        begins_C[[0, *text_ends[:-1]]] = True
        starts_P = np.flatnonzero(begins_C)
        hashes_P = _hashes(codes_C, starts_P)
        places_P = self.known.find(hashes_P)
        if (places_P < 0).any():
            self._learn(text, starts_P, hashes_P, np.flatnonzero(places_P < 0))
            places_P = self.known.find(hashes_P)
        ids, ends_P = self.known.tokens(places_P)
        ends = ends_P[np.searchsorted(starts_P, text_ends) - 1]
        self.known.forget_if_too_many()
        return np.split(ids, ends[:-1])

    def _learn(self, text: str, starts_P: IntArray, hashes_P: WordArray, missing: IntArray) -> None:
        """Let the library encode new pieces, many in one text."""
        ends_P = np.append(starts_P[1:], len(text))
        new, firsts = np.unique(hashes_P[missing], return_index=True)
        rows = missing[firsts]
        pieces = [text[start:end] for start, end in zip(starts_P[rows].tolist(), ends_P[rows].tolist(), strict=True)]
        groups = list(self._groups(pieces))
        encodings = self._backend.encode_batch_fast(["".join(group) for group in groups], add_special_tokens=False)
        ids, counts = [_NOTHING], []
        for group, encoding in zip(groups, encodings, strict=True):
            ids.append(np.array(encoding.ids, dtype=np.int32))
            piece_ends = np.cumsum([len(piece.encode()) for piece in group])
            lasts = np.searchsorted(np.cumsum(self._num_bytes[ids[-1]]), piece_ends) + 1
            counts.append(np.diff(lasts, prepend=0))
        self.known.add(new, np.concatenate(ids), np.concatenate(counts))

    def _groups(self, pieces: list[str]) -> Iterator[list[str]]:
        """Pieces that are encoded as one text: only the first may begin with what a merge could take up."""
        assert self._continuing is not None
        group: list[str] = []
        num_characters = 0
        for piece in pieces:
            if group and (num_characters >= CHARACTERS_OF_A_GROUP or piece[0] in self._continuing):
                yield group
                group, num_characters = [], 0
            group.append(piece)
            num_characters += len(piece)
        if group:
            yield group


_NOTHING = np.empty(0, dtype=np.int32)


def _hashes(codes_C: np.ndarray[Any, np.dtype[np.uint32]], starts_P: IntArray) -> WordArray:
    """A hash of each piece: the sum of those of its characters, each with its place in the piece."""
    lengths_P = np.diff(starts_P, append=codes_C.size)
    places_C = np.arange(codes_C.size) - np.repeat(starts_P, lengths_P)
    words_C = codes_C.astype(np.uint64) | ((places_C.astype(np.uint64) + np.uint64(1)) << np.uint64(32))
    return np.add.reduceat(mix64(words_C), starts_P)


class _Pieces:
    """The tokens of pieces, by the hashes of these."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._tokens = _NOTHING
        self._ends = np.zeros(1, dtype=np.int64)  # piece k has the tokens from its end to the next one
        self._sorted = np.empty(0, dtype=np.uint64)
        self._order = np.empty(0, dtype=np.int64)
        self._slots = np.full(1 << TABLE_BITS, -1, dtype=np.int64)
        self._hashes = np.empty(0, dtype=np.uint64)

    def __len__(self) -> int:
        return self._hashes.size

    def find(self, hashes_P: WordArray) -> IntArray:
        """The number of each piece; -1 for those that are not known."""
        if not self._hashes.size:
            return np.full(hashes_P.size, -1, dtype=np.int64)
        places_P = self._slots[_slot(hashes_P)]
        others = np.flatnonzero((places_P >= 0) & (self._hashes[places_P] != hashes_P))
        nearest = np.minimum(np.searchsorted(self._sorted, hashes_P[others]), self._sorted.size - 1)
        is_there = self._sorted[nearest] == hashes_P[others]
        places_P[others] = np.where(is_there, self._order[nearest], -1)
        return places_P

    def add(self, hashes: WordArray, tokens: Ids, counts: IntArray) -> None:
        """Remember pieces that are not known yet: how many of the tokens belong to each."""
        numbers = np.arange(len(self), len(self) + hashes.size)
        self._tokens = np.concatenate([self._tokens, tokens])
        self._ends = np.concatenate([self._ends, self._ends[-1] + np.cumsum(counts)])
        self._hashes = np.concatenate([self._hashes, hashes])
        self._order = np.argsort(self._hashes)
        self._sorted = self._hashes[self._order]
        slots = _slot(hashes)
        is_free = self._slots[slots] < 0
        self._slots[slots[is_free]] = numbers[is_free]

    def tokens(self, places_P: IntArray) -> tuple[Ids, IntArray]:
        """The tokens of pieces one after the other, and where those of each end."""
        firsts_P = self._ends[places_P]
        counts_P = self._ends[places_P + 1] - firsts_P
        ends_P = np.cumsum(counts_P)
        rows = np.arange(ends_P[-1]) + np.repeat(firsts_P - (ends_P - counts_P), counts_P)
        return self._tokens[rows], ends_P

    def forget_if_too_many(self) -> None:
        if len(self) > MOST_KEPT or self._tokens.size > MOST_TOKENS_KEPT:
            self._clear()


def _slot(hashes: WordArray) -> IntArray:
    return (hashes >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


def _continuing_characters(tree: Mapping[str, Any]) -> frozenset[str] | None:
    """Those that stand in a merged token anywhere but at its start; None where texts cannot be cut by them."""
    model = tree["model"]
    plain = (
        model.get("type") == "BPE"
        and tree.get("pre_tokenizer") is None
        and tree.get("normalizer") is None
        and all(token["special"] for token in tree.get("added_tokens") or ())
        and model.get("byte_fallback")
        and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and not model.get("ignore_merges")
    )
    if not plain:
        return None
    pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
    return frozenset(character for left, right in pairs for character in (left + right)[1:])


_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def _bytes_of_tokens(vocab: Mapping[str, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """UTF-8 bytes that each token stands for in a text."""
    sizes = np.zeros(max(vocab.values()) + 1, dtype=np.int64)
    for token, index in vocab.items():
        sizes[index] = 1 if _BYTE_TOKEN.fullmatch(token) else len(token.encode())
    return sizes


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of what decides the ids of a text: see `surface.definition`."""
    return fingerprint(surface.definition(tokenizer))


def token_surfaces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What each id draws [V]: its text, the name of a special token, or the hex digits of bytes that are no text."""
    return [surface.drawn(token) for token in surface.tokens(tokenizer)]


def token_num_bytes(tokenizer: PreTrainedTokenizerFast) -> np.ndarray[Any, np.dtype[np.int32]]:
    """UTF-8 bytes that each id contributes to decoded text, int32 [V]; 0 for special tokens."""
    return np.array([surface.num_bytes(token) for token in surface.tokens(tokenizer)], dtype=np.int32)
