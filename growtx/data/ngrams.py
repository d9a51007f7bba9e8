"""Character n-gram statistics: which strings of two to five characters deserve an id of their own."""

from __future__ import annotations

from collections import Counter
from functools import cache

LANGUAGES = ("en", "ru", "fr", "de", "zh", "he", "it", "es", "ar", "pt", "ko", "hu", "ja", "el", "sv", "nl", "pl", "vi",
             "fa", "nb", "tr", "fi", "cs", "da", "bn", "hi", "id", "uk", "ro", "bg", "ca", "sh", "ta")  # fmt: skip


@cache
def word_ngrams(language: str, length: int) -> Counter[str]:
    """Expected number of each n-gram per word of running text, from the frequencies packaged with wordfreq."""
    from wordfreq import get_frequency_dict

    counts: Counter[str] = Counter()
    for word, frequency in get_frequency_dict(language, wordlist="small").items():
        for start in range(len(word) - length + 1):
            counts[word[start : start + length]] += frequency
    return counts


@cache
def embedded_ngrams(longest: int) -> tuple[str, ...]:
    """N-grams of 2 to `longest` characters of all languages, most wanted first.

    Languages take turns: the k-th n-gram of each length of every language comes before any (k+1)-th one, so that
    no language crowds out another.
    """
    ranked = [
        [gram for gram, _ in sorted(word_ngrams(language, length).items(), key=lambda item: (-item[1], item[0]))]
        for language in LANGUAGES
        for length in range(2, longest + 1)
    ]
    depth = max(len(grams) for grams in ranked)
    turns = (grams[rank] for rank in range(depth) for grams in ranked if rank < len(grams))
    return tuple(dict.fromkeys(turns))
