"""Which string each token id stands for, and the merges that put the longer strings together.

Two kinds of vocabulary; `growtx.data.tokenizer` turns either into a Hugging Face fast tokenizer:

* `unicode_vocabulary(ngrams, size)`     ids are code points; n-grams live in ids that no character can have;
* `compact_vocabulary(texts, size)`      any size: the characters and n-grams that the given texts need.

Both are lossless: a character without an id of its own is spelled by its UTF-8 bytes, 256 tokens `<0x00>` ..
`<0xFF>` (the convention of byte-fallback BPE).
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from growtx.exceptions import ConfigError, DataError

Merge = tuple[str, str]

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
MANDATORY_TOKENS = SPECIAL_TOKENS + BYTE_TOKENS

SURROGATES = range(0xD800, 0xE000)  # no character has these code points, so the ids are free
PRIVATE_USE = range(0xE000, 0xF900)
SPECIAL_IDS = range(0xE000, 0xE100)  # <pad> = 57344, as published
BYTE_IDS = range(0xE100, 0xE200)
LAST_CHARACTER = 0xFFFE
BMP_SIZE = 0x10000

CHARACTER_COVERAGE = 0.9995  # of a text; the rest, rare Han and stray symbols, is cheaper to spell by bytes
PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s"


@dataclass(frozen=True)
class Vocabulary:
    """Token strings by id, the merges of its BPE (most urgent first), and the control tokens, which spell nothing."""

    tokens: tuple[str, ...]
    merges: tuple[Merge, ...]
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS

    def __post_init__(self) -> None:
        assert len(set(self.tokens)) == len(self.tokens), "two ids stand for the same string"
        made = {left + right for left, right in self.merges}
        assert made.isdisjoint(self.special_tokens + BYTE_TOKENS), "text could be read as a control token or a byte"


def unicode_vocabulary(ngrams: Sequence[str], size: int) -> Vocabulary:
    """A vocabulary whose ids below 0xFFFF are the code points themselves (arXiv 2507.04886).

    Args:
        ngrams: strings of two or more characters, most wanted first; as many are taken as there are free ids.
        size: 65,536 (the basic plane alone) or more (the ids above are n-grams too).

    Raises:
        ConfigError: if `size` is smaller than the basic plane.
    """
    if size < BMP_SIZE:
        problem = f"vocab_size={size} is too small for the unicode families, whose ids are {BMP_SIZE} code points"
        raise ConfigError(problem, f"Use vocab_size={BMP_SIZE} or more, or family=compact")
    tokens = [chr(code) if owns_an_id(code) else f"<unused_{code}>" for code in range(size)]
    reserved = (f"<reserved_{code}>" for code in SPECIAL_IDS[len(SPECIAL_TOKENS) :])
    tokens[SPECIAL_IDS.start : SPECIAL_IDS.stop] = special = (*SPECIAL_TOKENS, *reserved)
    tokens[BYTE_IDS.start : BYTE_IDS.stop] = BYTE_TOKENS
    free_ids = (*SURROGATES, *PRIVATE_USE[len(SPECIAL_IDS) + len(BYTE_IDS) :], *range(BMP_SIZE, size))
    wanted = [gram for gram in dict.fromkeys(ngrams) if gram not in MANDATORY_TOKENS]
    merges = merges_of_ngrams(wanted, len(free_ids))
    chosen = sorted({left + right for left, right in merges}, key=lambda gram: (-len(gram), gram))
    for code, gram in zip(free_ids, chosen, strict=False):
        tokens[code] = gram
    return Vocabulary(tuple(tokens), merges, special_tokens=special)


def owns_an_id(code: int) -> bool:
    """Whether a code point is itself an id of the unicode families."""
    return code <= LAST_CHARACTER and code not in SURROGATES and code not in PRIVATE_USE


def merges_of_ngrams(ngrams: Sequence[str], limit: int) -> tuple[Merge, ...]:
    """Merges that make a token of each of the first `limit` n-grams that can be one.

    Longer results are more urgent, as in the published tokenizers, then those listed first. An n-gram that these
    merges do not build, because its parts are not tokens or earlier merges tear it apart, would waste its id: the
    next one in the list takes its place.
    """
    position = {gram: index for index, gram in enumerate(ngrams)}
    torn: set[str] = set()
    while True:
        tokens: set[str] = set()
        for gram in ngrams:
            if len(tokens) == limit:
                break
            if gram not in torn and next(_cuts(gram, tokens), None):
                tokens.add(gram)
        by_urgency = sorted(tokens, key=lambda gram: (-len(gram), position[gram]))
        merges = tuple(merge for gram in by_urgency for merge in _cuts(gram, tokens))
        urgency = {merge: rank for rank, merge in enumerate(merges)}
        unreached = {gram for gram in by_urgency if not _is_reached(gram, urgency)}
        if not unreached:
            return merges
        torn |= unreached


def _cuts(gram: str, tokens: set[str]) -> Iterator[Merge]:
    """All ways to cut an n-gram into two tokens."""
    for cut in range(1, len(gram)):
        parts = gram[:cut], gram[cut:]
        if all(part in tokens if len(part) > 1 else owns_an_id(ord(part)) for part in parts):
            yield parts


def _is_reached(gram: str, urgency: dict[Merge, int]) -> bool:
    """Whether BPE, given the n-gram alone, ends with one token."""
    parts = list(gram)
    while len(parts) > 1:
        merge = min(itertools.pairwise(parts), key=lambda pair: urgency.get(pair, len(urgency)))
        if merge not in urgency:
            return False
        at = next(index for index, pair in enumerate(itertools.pairwise(parts)) if pair == merge)
        parts[at : at + 2] = ["".join(merge)]
    return True


def compact_vocabulary(texts: Iterable[str], size: int, *, max_characters: int, max_bytes: int) -> Vocabulary:
    """A vocabulary of exactly `size` tokens made for the given texts: special tokens, bytes, characters, n-grams.

    Args:
        texts: documents, in any order.
        max_characters: length of the longest n-gram; a substrate draws long tokens small.
        max_bytes: a larger text is sampled evenly down to this size.

    Raises:
        ConfigError: if `size` leaves no room for characters.
        DataError: if there is no text, or too little to find that many n-grams in.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    num_free = size - len(MANDATORY_TOKENS)
    if num_free < 2:
        problem = f"vocab_size={size} is too small: {len(MANDATORY_TOKENS)} ids are special tokens and bytes"
        raise ConfigError(problem, f"Use vocab_size={len(MANDATORY_TOKENS) + 2} or more")
    documents = _even_sample(texts, max_bytes)
    if not documents:
        raise DataError(
            "There is no text to make a vocabulary from: data.sources hold none, or all of it is held out",
            "Add text, or divide it: write several rows, or a .txt file, which is cut into documents of document_bytes",
        )
    alphabet = _alphabet(documents, num_free // 2)
    tokenizer = Tokenizer(models.BPE())
    # The pieces keep n-grams within words; the finished tokenizer needs none, because no merge crosses a word.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(MANDATORY_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=max_characters + 1,  # the library's bound is exclusive
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    if len(model["vocab"]) < size:
        problem = f"These texts have only {len(model['vocab'])} characters and n-grams, not vocab_size={size}"
        raise DataError(problem, f"Set tokenizer.vocab_size={len(model['vocab'])} or lower, or add text")
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return Vocabulary(tuple(tokens), tuple((left, right) for left, right in model["merges"]))


def _even_sample(texts: Iterable[str], max_bytes: int) -> list[str]:
    """The texts with the smallest hashes, as many as fit: independent of the order they come in."""
    kept: list[tuple[int, int, str]] = []
    num_bytes = 0
    for text in texts:
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"The text {text[:40]!r} is not valid Unicode (lone surrogate)", "Correct it") from error
        rank = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")
        heapq.heappush(kept, (-rank, len(encoded), text))
        num_bytes += len(encoded)
        while num_bytes > max_bytes and len(kept) > 1:
            num_bytes -= heapq.heappop(kept)[1]
    return [text for _, _, text in kept if text]


def _alphabet(documents: list[str], limit: int) -> list[str]:
    """The characters that earn an id: the most frequent up to the coverage; ties go by code point."""
    counts: Counter[str] = Counter()
    for text in documents:
        counts.update(text)
    ranked = sorted(counts, key=lambda char: (-counts[char], char))[:limit]
    covered = itertools.accumulate(counts[char] for char in ranked)
    num_needed = 1 + sum(total < CHARACTER_COVERAGE * counts.total() for total in covered)
    return sorted(ranked[:num_needed])
