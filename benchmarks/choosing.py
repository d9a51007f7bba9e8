"""What choosing the next tokens of a batch costs: growtx beside the sampling of transformers on the same scores.

transformers draws from one random generator for the whole batch, so that a text's tokens depend on its company, and on
the device; here every text has noise of its own, the same everywhere. Both run in turn within a round.

Shapes: C texts, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from growtx.sampling import Choice, Sampling, choose

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "top_k 50": {"temperature": 0.8, "top_k": 50},
    "top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top_p 0.9, nearly uniform": {"temperature": 30.0, "top_p": 0.9},
}


@dataclass(frozen=True)
class ChoosingRow:
    """Medians over the rounds, in milliseconds a text; `ratio` is theirs over ours within a round."""

    way: str
    vocab_size: int
    milliseconds: float
    their_milliseconds: float
    ratio: float


def measure_choosing(
    vocab_size: int, *, num_texts: int = 32, rounds: int = 5, device: str = "cpu"
) -> list[ChoosingRow]:
    """A row for each way of sampling."""
    scores_CV = 3 * torch.randn(num_texts, vocab_size, generator=torch.Generator().manual_seed(0)).to(device)
    rows = []
    for way, settings in WAYS.items():
        choices = [Choice(Sampling(seed=text, **settings), text) for text in range(num_texts)]
        theirs = of_transformers(settings)
        times = [(_seconds(lambda: choose(scores_CV, choices)), _seconds(lambda: theirs(scores_CV)))  # noqa: B023
                 for _ in range(rounds + 1)][1:]  # fmt: skip
        own, other = (1e3 * median(column) / num_texts for column in zip(*times, strict=True))
        rows.append(ChoosingRow(way, vocab_size, own, other, median(b / a for a, b in times)))
    return rows


def of_transformers(settings: dict[str, Any]) -> Callable[[torch.Tensor], list[int]]:
    """What `generate` does with the scores of a batch."""
    if settings["temperature"] == 0:
        return lambda scores_CV: scores_CV.argmax(-1).tolist()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings["temperature"])])
    if "top_k" in settings:
        warpers.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        warpers.append(TopPLogitsWarper(settings["top_p"]))

    def draw(scores_CV: torch.Tensor) -> list[int]:
        probabilities_CV = warpers(torch.zeros(1), scores_CV).softmax(-1)
        return probabilities_CV.multinomial(1)[:, 0].tolist()  # type: ignore[no-any-return]

    return draw


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()  # ends with tokens on the host: nothing is left to wait for
    return time.perf_counter() - start
