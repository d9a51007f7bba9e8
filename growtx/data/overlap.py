"""How much of a test lies in the training text: word n-grams that both share, found in one pass over the documents.

An item counts as overlapping when any of its 13-grams occurs in a document, after Brown et al. 2020, "Language Models
are Few-Shot Learners" (arXiv:2005.14165, appendix C); the share of its n-grams that occur is kept for stricter rules,
such as the 70 % of Chowdhery et al. 2022 (arXiv:2204.02311). Words are compared without case, punctuation and
compatibility forms; every Han and kana character is a word. Items of 8 to 12 words are looked up as a whole, shorter
ones say nothing.

Memory grows with the tests, not with the documents. Two different n-grams are mistaken for one with a probability of
2**-64 each time they are compared.

All arrays are flat: numbers of words, or hashes of n-grams of one length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growtx.generator import WordArray, mix64

SHORTEST_ITEM = 8
WORDS_PER_CHUNK = 1 << 18

_HAN_AND_KANA = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_HAN_AND_KANA}]|[^\W{_HAN_AND_KANA}]+")


@dataclass(frozen=True)
class TaskOverlap:
    """What was found of one task's items."""

    num_items: int
    num_too_short: int  # items of fewer words than can be judged
    shares: tuple[float, ...]  # of each other item's n-grams: how many occur in the documents, 0 to 1

    @property
    def num_overlapping(self) -> int:
        """Items with at least one n-gram in the documents."""
        return sum(share > 0 for share in self.shares)

    def num_contained(self, share: float) -> int:
        """Items with at least this share of their n-grams in the documents."""
        return sum(found >= share for found in self.shares)


def measure_overlap(
    documents: Iterable[str], tests: Mapping[str, Sequence[str]], *, ngram: int = 13
) -> dict[str, TaskOverlap]:
    """Find the n-grams of tests in documents.

    Args:
        documents: training texts; read once, one chunk in memory.
        tests: the text of every item (question, and what else must not be known), by task.
        ngram: number of consecutive words that must match, at least 8.
    """
    assert ngram >= SHORTEST_ITEM
    vocabulary: dict[str, int] = {}  # words of the tests, from 1; every other word is 0
    items = {task: [_numbered(text, vocabulary) for text in texts] for task, texts in tests.items()}
    by_length: dict[int, list[WordArray]] = {}
    for item in (item for task in items.values() for item in task if item.size >= SHORTEST_ITEM):
        length = min(ngram, item.size)
        by_length.setdefault(length, []).append(_hashes(item, [length])[length])
    known = {length: np.unique(np.concatenate(hashes)) for length, hashes in by_length.items()}
    found = {length: np.zeros(hashes.size, dtype=bool) for length, hashes in known.items()}
    for words in _chunks(documents, vocabulary):
        for length, seen in _hashes(words, known).items():
            found[length][_places(seen, known[length])] = True
    return {task: _summary(numbered, ngram, known, found) for task, numbered in items.items()}


def _summary(
    items: list[WordArray], ngram: int, known: dict[int, WordArray], found: dict[int, npt.NDArray[np.bool_]]
) -> TaskOverlap:
    shares = []
    for item in (item for item in items if item.size >= SHORTEST_ITEM):
        length = min(ngram, item.size)
        places = _places(_hashes(item, [length])[length], known[length])
        shares.append(float(found[length][places].mean()))
    return TaskOverlap(len(items), len(items) - len(shares), tuple(shares))


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared."""
    return _WORD.findall(text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold())


def _numbered(text: str, vocabulary: dict[str, int]) -> WordArray:
    """Numbers of the words of a test item; new words are added to the vocabulary."""
    numbers = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in words_of(text)]
    return np.array(numbers, dtype=np.uint64)


def _chunks(documents: Iterable[str], vocabulary: Mapping[str, int]) -> Iterator[WordArray]:
    """Documents as word numbers; a 0 between two, so that no n-gram spans both."""
    numbers: list[int] = []
    for document in documents:
        numbers += [vocabulary.get(word, 0) for word in words_of(document)]
        numbers.append(0)
        if len(numbers) >= WORDS_PER_CHUNK:
            yield np.array(numbers, dtype=np.uint64)
            numbers = []
    yield np.array(numbers, dtype=np.uint64)


def _hashes(words: WordArray, lengths: Collection[int]) -> dict[int, WordArray]:
    """For each length, a hash of every run of that many words without a 0 among them."""
    mixed = mix64(words)
    total, whole = np.zeros_like(words), np.ones(words.size, dtype=bool)
    result = {}
    for offset in range(max(lengths, default=0)):
        num_runs = max(0, words.size - offset)
        total = mix64(total[:num_runs] + mixed[offset:])
        whole = whole[:num_runs] & (words[offset:] != 0)
        if offset + 1 in lengths:
            result[offset + 1] = total[whole]
    return result


def _places(seen: WordArray, known: WordArray) -> npt.NDArray[np.int64]:
    """The positions in the sorted `known` of the values that were seen."""
    places = np.searchsorted(known, seen).astype(np.int64)
    inside = places < known.size
    found = np.zeros(places.size, dtype=bool)
    found[inside] = known[places[inside]] == seen[inside]
    return places[found]
