"""Which strings of two to five characters deserve a token of their own.

Here they come from the word frequencies of `wordfreq` (no network); `ngram_counting` counts them over any data.
N-grams lie within words, as in the published lists: runs of letters and their marks.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import regex  # type: ignore[import-untyped]

from growtx.compat.ray import is_connected
from growtx.data.sources import DataConfig, SourceConfig, iterate_source, source_files

WORD = regex.compile(r"[\p{L}\p{M}']+")
NGRAM_LANGUAGES = (
    "en", "ru", "fr", "de", "zh", "he", "it", "es", "ar", "pt", "ko", "hu", "ja", "el", "sv", "nl", "pl", "vi",
    "fa", "nb", "tr", "fi", "cs", "da", "bn", "hi", "id", "uk", "ro", "bg", "ca", "sh", "ta",
)  # fmt: skip
SHORTEST = 2
WORDS_PER_LANGUAGE = 8000  # nine words of ten in running text; rarer ones do not change which n-grams lead
CAPITALISED = 0.1  # share of words that start with a capital; wordfreq knows lower case only
NGRAMS_PER_LIST = 5000


@cache
def embedded_ngrams(longest: int) -> tuple[str, ...]:
    """N-grams of 2 to `longest` characters of 33 languages, most wanted first."""
    lengths = range(SHORTEST, longest + 1)
    return interleave([leading(_word_ngrams(language, length)) for language in NGRAM_LANGUAGES for length in lengths])


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


def interleave(lists: Iterable[list[str]]) -> tuple[str, ...]:
    """All strings of all lists, the first of each before the second of any: no language crowds out another."""
    rounds = itertools.zip_longest(*lists)
    return tuple(dict.fromkeys(gram for turn in rounds for gram in turn if gram is not None))


# N-grams counted over any data, as a Ray Data job that uses every core of the cluster.
#
# Documents are counted where they are read; counts are added up by a shuffle on the n-gram, and only the
# leading n-grams of each part come back, so that nothing grows with the size of the corpus on one machine.


DOCUMENTS_PER_BLOCK = 512
KEY = ["source", "gram"]
SCHEMA = pa.schema([("source", pa.string()), ("gram", pa.string()), ("count", pa.int64())])


def counted_ngrams(config: DataConfig, longest: int) -> tuple[str, ...]:
    """N-grams of 2 to `longest` characters of the training text, most wanted first; sources take turns.

    Raises:
        DataError: if a source cannot be read.
    """
    parts = [
        part for name, source in zip(config.source_names, config.sources, strict=True) for part in _parts(source, name)
    ]
    count = _counted_on_ray if is_connected() else _counted_here
    rows: dict[tuple[str, int], dict[str, int]] = {}
    for row in count(parts, config.validation_fraction, longest):
        rows.setdefault((row["source"], len(row["gram"])), {})[row["gram"]] = row["count"]
    lengths = range(SHORTEST, longest + 1)
    return interleave([leading(rows.get((name, length), {})) for name in config.source_names for length in lengths])


def _counted_on_ray(
    parts: Sequence[dict[str, str]], validation_fraction: float, longest: int
) -> Iterator[dict[str, Any]]:
    import ray
    from ray.data.aggregate import Sum

    documents = ray.data.from_items(parts, override_num_blocks=len(parts)).flat_map(
        _training_texts, fn_kwargs={"validation_fraction": validation_fraction}
    )
    counts = documents.repartition(target_num_rows_per_block=DOCUMENTS_PER_BLOCK).map_batches(
        _count, fn_kwargs={"longest": longest}, batch_size=None, batch_format="pyarrow"
    )
    num_partitions = max(1, int(ray.cluster_resources()["CPU"]))
    totals = counts.groupby(KEY, num_partitions=num_partitions).aggregate(Sum("count", alias_name="count"))
    best = totals.map_batches(_keep_leading, batch_size=None, batch_format="pyarrow")
    yield from best.iter_rows()


def _counted_here(
    parts: Sequence[dict[str, str]], validation_fraction: float, longest: int
) -> Iterator[dict[str, Any]]:
    """Block by block in this process, with all counts in its memory."""
    totals = _table([])
    documents = (text for part in parts for text in _training_texts(part, validation_fraction))
    while block := list(itertools.islice(documents, DOCUMENTS_PER_BLOCK)):
        both = pa.concat_tables([totals, _count(pa.Table.from_pylist(block), longest)])
        totals = both.group_by(KEY).aggregate([("count", "sum")]).rename_columns({"count_sum": "count"})
    yield from totals.to_pylist()


def _parts(source: SourceConfig, name: str) -> Iterator[dict[str, str]]:
    """What one task reads: a file, or a whole source whose limits span its files."""
    indivisible = source.files is None or source.max_documents is not None or source.max_bytes is not None
    for part in (
        [source] if indivisible else [source.model_copy(update={"files": path}) for path in source_files(source)]
    ):
        yield {"name": name, "source": part.model_dump_json(exclude_unset=True)}


def _training_texts(part: dict[str, str], validation_fraction: float) -> Iterator[dict[str, str]]:
    source = SourceConfig.model_validate_json(part["source"])
    for document in iterate_source(source, part["name"], validation_fraction):
        if document.split == "train":
            yield {"source": part["name"], "text": document.text}


def _count(batch: pa.Table, longest: int) -> pa.Table:
    counts: Counter[tuple[str, str]] = Counter()
    for source, text in zip(batch["source"].to_pylist(), batch["text"].to_pylist(), strict=True):
        for length in range(SHORTEST, longest + 1):
            counts.update((source, gram) for gram in ngrams_of(text, length))
    return _table([(source, gram, count) for (source, gram), count in counts.items()])


def _keep_leading(totals: pa.Table) -> pa.Table:
    """Of one partition of the n-grams, those that can be among the leading ones overall."""
    lists: dict[tuple[str, int], dict[str, int]] = {}
    for row in totals.to_pylist():
        lists.setdefault((row["source"], len(row["gram"])), {})[row["gram"]] = row["count"]
    return _table([(source, gram, counts[gram]) for (source, _), counts in lists.items() for gram in leading(counts)])


def _table(rows: list[tuple[str, str, int]]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)
