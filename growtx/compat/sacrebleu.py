"""What sacrebleu does not offer: the counts of every sentence, and the score of any sum of them.

It can resample a corpus itself, but fails where a resample shares nothing at all with the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

SEEN = "2.6.0"
TOUCHED = (
    ("sacrebleu.metrics.base:Metric._extract_corpus_statistics", "count each sentence for the intervals of a score"),
    ("sacrebleu.metrics.base:Metric._compute_score_from_stats", "score resampled counts for the intervals of a score"),
)


def sentence_counts(scorer: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> list[list[int]]:
    """What the metric counts in each sentence: lengths, and n-grams that agree."""
    return scorer._extract_corpus_statistics(hypotheses, [references])  # type: ignore[no-any-return]


def score_of_counts(scorer: Metric, counts: Sequence[float]) -> float:
    """The metric, from 0 to 100, of summed counts."""
    return float(scorer._compute_score_from_stats(counts).score)
