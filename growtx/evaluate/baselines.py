"""What multiple choice scores without a model: a score that is not above these shows no knowledge."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence


def chance(choices: Sequence[Sequence[str]]) -> float:
    """Share of right answers that a guess is expected to give."""
    return sum(1 / len(texts) for texts in choices) / len(choices)


def shortest(choices: Sequence[Sequence[str]], targets: Sequence[int]) -> float:
    """Of always choosing the shortest answer, which is what raw log-likelihoods lean to."""
    lengths = [[len(text) for text in texts] for texts in choices]
    return sum(row.index(min(row)) == target for row, target in zip(lengths, targets, strict=True)) / len(targets)


def majority(choices: Sequence[Sequence[str]], targets: Sequence[int]) -> float:
    """Of always choosing, among the offered answers, the one that is most often right elsewhere.

    Counted on one half of the questions and used on the other, both ways round; equal counts share the point.
    """
    order = list(range(len(targets)))
    random.Random(0).shuffle(order)
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    points = 0.0
    for counted, used in (halves, halves[::-1]):
        right = Counter(choices[at][targets[at]] for at in counted)
        for at in used:
            counts = [right[text] for text in choices[at]]
            points += (counts[targets[at]] == max(counts)) / counts.count(max(counts))
    return points / len(targets)
