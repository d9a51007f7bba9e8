"""Which string each token id stands for, and the merges that reach the longer strings.

Three builders make a `Vocabulary`; `growtx.data.tokenizer` turns it into a Hugging Face fast tokenizer:

* `unicode_vocabulary(ngrams, 65_536)`   ids are code points, n-grams live in ids that no character can have;
* `unicode_vocabulary(ngrams, 131_072)`  the same, with a second plane of n-grams above 0xFFFF;
* `compact_vocabulary(texts, size)`      any size: the characters and n-grams that the given texts need.

Every vocabulary is lossless: a character without an id of its own is spelled by its UTF-8 bytes, 256 tokens
`<0x00>` .. `<0xFF>` (the convention of byte-fallback BPE).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from growtx.exceptions import ConfigError, DataError

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

SURROGATES = range(0xD800, 0xE000)  # no character has these code points, so the ids are free
PRIVATE_USE = range(0xE000, 0xF900)
SPECIAL_IDS = range(0xE000, 0xE100)  # <pad> = 57344, as published
BYTE_IDS = range(0xE100, 0xE200)
LAST_CHARACTER = 0xFFFE
BMP_SIZE = 0x10000

MIN_COMPACT_SIZE = len(SPECIAL_TOKENS) + len(BYTE_TOKENS) + 2
CHARACTER_COVERAGE = 0.9995  # of a corpus; the rest, rare Han and stray symbols, is cheaper to spell by bytes
SPACED_PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s"


@dataclass(frozen=True)
class Vocabulary:
    """Token strings by id, the merges of its BPE (most urgent first), and which tokens control rather than spell."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS

    def __post_init__(self) -> None:
        assert len(set(self.tokens)) == len(self.tokens), "two ids stand for the same string"


def unicode_vocabulary(ngrams: Sequence[str], size: int) -> Vocabulary:
    """A vocabulary whose ids below 0xFFFF are the code points themselves (arXiv 2507.04886).

    Args:
        ngrams: strings of two or more characters, most wanted first; as many are taken as there are free ids.
        size: 65,536 (the basic plane alone) or more (the rest are n-grams too).

    Raises:
        ConfigError: if `size` is smaller than the basic plane.
    """
    if size < BMP_SIZE:
        problem = f"vocab_size={size} is too small for the unicode families, which own {BMP_SIZE} code points"
        raise ConfigError(problem, f"Use vocab_size={BMP_SIZE} or more, or family=compact")
    free_ids = [*SURROGATES, *range(BYTE_IDS.stop, PRIVATE_USE.stop), *range(BMP_SIZE, size)]
    tokens = [chr(code) if _owns_its_code_point(code) else f"<unused_{code}>" for code in range(size)]
    tokens[SPECIAL_IDS.start : SPECIAL_IDS.stop] = _padded_specials()
    tokens[BYTE_IDS.start : BYTE_IDS.stop] = BYTE_TOKENS
    chosen, merges = reachable_ngrams(ngrams, len(free_ids), set(tokens))
    for code, ngram in zip(free_ids, sorted(chosen, key=lambda gram: (-len(gram), gram)), strict=False):
        tokens[code] = ngram
    return Vocabulary(tuple(tokens), merges, special_tokens=tuple(_padded_specials()))


def _owns_its_code_point(code: int) -> bool:
    return code <= LAST_CHARACTER and code not in SURROGATES and code not in PRIVATE_USE


def _padded_specials() -> list[str]:
    reserved = (f"<reserved_{code}>" for code in SPECIAL_IDS[len(SPECIAL_TOKENS) :])
    return [*SPECIAL_TOKENS, *reserved]


def reachable_ngrams(
    ngrams: Sequence[str], limit: int, taken: set[str]
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """The first `limit` n-grams that merges can build, and those merges.

    An n-gram is reachable when it is two tokens put together: a bigram always is, a longer one if a shorter
    n-gram covers all of it but one end. Longer results are more urgent, as in the published tokenizers, so that
    `the` is one token and not `th` + `e`.
    """
    candidates = [gram for gram in dict.fromkeys(ngrams) if len(gram) > 1 and gram not in taken]
    chosen: list[str] = []
    known: set[str] = set()
    for gram in candidates:
        if len(chosen) == limit:
            break
        if _splits(gram, known):
            chosen.append(gram)
            known.add(gram)
    merges = [pair for gram in sorted(chosen, key=lambda text: (-len(text), text)) for pair in _splits(gram, known)]
    return chosen, tuple(merges)


def _splits(gram: str, known: set[str]) -> list[tuple[str, str]]:
    def is_token(part: str) -> bool:
        return part in known if len(part) > 1 else _owns_its_code_point(ord(part))

    pairs = ((gram[:cut], gram[cut:]) for cut in range(1, len(gram)))
    return [(left, right) for left, right in pairs if is_token(left) and is_token(right)]


def compact_vocabulary(texts: Iterable[str], size: int, *, max_characters: int, max_training_bytes: int) -> Vocabulary:
    """A vocabulary of exactly `size` tokens for the given texts: special tokens, bytes, characters, n-grams.

    Args:
        texts: documents; at most `max_training_bytes` of them are read.
        max_characters: length of the longest n-gram; a substrate draws long tokens small.

    Raises:
        ConfigError: if `size` leaves no room for characters.
        DataError: if there is no text, or too little to find that many n-grams in.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if size < MIN_COMPACT_SIZE:
        problem = f"vocab_size={size} is too small: {MIN_COMPACT_SIZE - 2} ids are special tokens and bytes"
        raise ConfigError(problem, f"Use vocab_size={MIN_COMPACT_SIZE} or more")
    documents = _take(texts, max_training_bytes)
    alphabet = _alphabet(documents, (size - len(SPECIAL_TOKENS) - len(BYTE_TOKENS)) // 2)
    tokenizer = Tokenizer(models.BPE())
    # Pieces only bound the statistics: the finished tokenizer runs without them.
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPACED_PIECES), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *BYTE_TOKENS],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=max_characters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return _trained(tokenizer.to_str(), size)


def _take(texts: Iterable[str], max_bytes: int) -> list[str]:
    documents: list[str] = []
    num_bytes = 0
    for text in texts:
        documents.append(text)
        num_bytes += len(text.encode("utf-8", "surrogatepass"))
        if num_bytes >= max_bytes:
            break
    if not num_bytes:
        raise DataError("There is no text to build a vocabulary from", "Check data.sources")
    return documents


def _alphabet(documents: list[str], limit: int) -> list[str]:
    """The characters that earn an id: the most frequent ones up to the coverage, ties by code point."""
    counts: Counter[str] = Counter()
    for text in documents:
        counts.update(text)
    ranked = sorted(counts, key=lambda char: (-counts[char], char))[:limit]
    cumulative = itertools.accumulate(counts[char] for char in ranked)
    needed = CHARACTER_COVERAGE * counts.total()
    num_kept = 1 + sum(total < needed for total in cumulative)
    return sorted(ranked[:num_kept])


def _trained(serialized: str, size: int) -> Vocabulary:
    import json

    model = json.loads(serialized)["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if len(tokens) < size:
        problem = f"vocab_size={size} is more than these texts have n-grams for ({len(tokens)})"
        raise DataError(problem, f"Use vocab_size={len(tokens)} or less, or more text")
    return Vocabulary(tuple(tokens), tuple((left, right) for left, right in model["merges"]))
