"""Which strings of two to five characters deserve a token of their own.

Here from the word frequencies that come with `wordfreq` (no network); `ngram_counting` counts them over any data.
N-grams lie within words, as in the published lists: runs of letters and their marks.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache

import regex  # type: ignore[import-untyped]

WORD = regex.compile(r"[\p{L}\p{M}']+")
LANGUAGES = ("en", "ru", "fr", "de", "zh", "he", "it", "es", "ar", "pt", "ko", "hu", "ja", "el", "sv", "nl", "pl", "vi",
             "fa", "nb", "tr", "fi", "cs", "da", "bn", "hi", "id", "uk", "ro", "bg", "ca", "sh", "ta")  # fmt: skip
SHORTEST = 2
WORDS_PER_LANGUAGE = 8000  # nine words of ten in running text; rarer ones do not change which n-grams lead
CAPITALISED = 0.1  # share of words that start with a capital; wordfreq knows lower case only
NGRAMS_PER_LIST = 5000


@cache
def embedded_ngrams(longest: int) -> tuple[str, ...]:
    """N-grams of 2 to `longest` characters of 33 languages, most wanted first."""
    lengths = range(SHORTEST, longest + 1)
    return take_turns([leading(_word_ngrams(language, length)) for language in LANGUAGES for length in lengths])


def _word_ngrams(language: str, length: int) -> Counter[str]:
    """Expected number of each n-gram in a word of running text."""
    from wordfreq import get_frequency_dict

    counts: Counter[str] = Counter()
    words = get_frequency_dict(language, wordlist="small").items()  # most frequent first
    for word, frequency in itertools.islice(words, WORDS_PER_LANGUAGE):
        for gram in ngrams_of(word, length):
            counts[gram] += frequency
        capital = word[0].upper()
        if capital != word[0]:
            for gram in ngrams_of(capital + word[1:length], length)[:1]:
                counts[gram] += CAPITALISED * frequency
    return counts


def ngrams_of(text: str, length: int) -> list[str]:
    """The n-grams of one length within the words of a text, with repetitions."""
    words = WORD.findall(text)
    return [word[start : start + length] for word in words for start in range(len(word) - length + 1)]


def leading(counts: Mapping[str, float]) -> list[str]:
    """The most frequent n-grams, ties in alphabetical order."""
    return heapq.nsmallest(NGRAMS_PER_LIST, counts, key=lambda gram: (-counts[gram], gram))


def take_turns(lists: Iterable[list[str]]) -> tuple[str, ...]:
    """All strings of all lists, the first of each before the second of any: no language crowds out another."""
    rounds = itertools.zip_longest(*lists)
    return tuple(dict.fromkeys(gram for turn in rounds for gram in turn if gram is not None))
