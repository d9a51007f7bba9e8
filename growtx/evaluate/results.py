"""What an evaluation writes: one flat list of scores, in `evaluation.json`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from growtx.config import parse_record
from growtx.evaluate.intervals import Interval
from growtx.storage import Storage

EVALUATION_FILE = "evaluation.json"
COMPRESSION_TASK = "bits_per_byte"  # what is measured without lm-eval
MICROWORLD_TASK = "microworld"  # stands for all tasks microworld_NAME
Protocol = Literal["log-likelihood", "generated", "sampled letter", "compression"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Score(_Record):
    """One number with its 95 % interval. Shares, F1, BLEU and chrF run from 0 to 1."""

    task: str
    metric: str
    protocol: Protocol
    depth: int = Field(description="blocks of the model")
    group: str = Field("", description="subject, language or source that this is a part of; empty: the whole task")
    variant: str = Field("", description="a model shown beside this one, such as its control; empty: the model itself")
    value: float
    low: float | None
    high: float | None
    num_items: int
    chance: float | None = Field(None, description="expected score of a guess")
    majority: float | None = Field(None, description="score of the offered answer that is most often right elsewhere")
    shortest: float | None = Field(None, description="score of always choosing the shortest answer")
    format_failures: float | None = Field(None, description="share of samples that are no answer at all")
    sigma: float | None = Field(None, description="standard deviation between runs")
    num_runs: int | None = None
    truncated: float | None = Field(None, description="share of prompts cut on the left to fit the context")

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high)

    @property
    def key(self) -> tuple[str, str, str, int, str, str]:
        """What a later measurement of the same thing replaces."""
        return (self.task, self.metric, self.protocol, self.depth, self.group, self.variant)


class Overlap(_Record):
    """How many of a task's questions share word n-grams with the training text."""

    task: str
    ngram: int
    num_items: int
    num_too_short: int = Field(description="questions with too few words to judge")
    num_overlapping: int = Field(description="with at least one n-gram in the training text")
    num_contained: int = Field(description="with most of their n-grams there")


class Evaluation(_Record):
    """All scores of one model (a run, an ensemble, a directory) so far."""

    model: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    command: str = ""
    scores: tuple[Score, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    notes: tuple[str, ...] = Field((), description="what was left out and why, a sentence each")

    def merged(self, newer: Evaluation) -> Evaluation:
        """Both combined; where something was measured twice, the newer score counts."""
        scores = {score.key: score for score in (*self.scores, *newer.scores)}
        overlaps = {(overlap.task, overlap.ngram): overlap for overlap in (*self.overlaps, *newer.overlaps)}
        return newer.model_copy(update={"scores": tuple(scores.values()), "overlaps": tuple(overlaps.values())})

    def beside(self, other: Evaluation, variant: str) -> Evaluation:
        """This evaluation with the scores of another model added under a name."""
        named = tuple(score.model_copy(update={"variant": variant}) for score in other.scores if not score.variant)
        return self.model_copy(update={"scores": (*self.scores, *named), "notes": (*self.notes, *other.notes)})

    @property
    def own_scores(self) -> list[Score]:
        """Scores of the model itself."""
        return [score for score in self.scores if not score.variant]

    @property
    def depths(self) -> list[int]:
        return sorted({score.depth for score in self.scores})

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order they were first scored."""
        return list(dict.fromkeys(score.task for score in self.scores))


def read_evaluation(storage: Storage) -> Evaluation | None:
    """The evaluation in a directory, or None.

    Raises:
        StoreError: the file there is damaged.
    """
    if not storage.exists(EVALUATION_FILE):
        return None
    data = storage.read_bytes(EVALUATION_FILE)
    return parse_record(Evaluation, data, storage.path(EVALUATION_FILE), "Delete it and evaluate again")


def save_evaluation(storage: Storage, evaluation: Evaluation) -> Evaluation:
    """Add an evaluation to what the directory already holds; returns both together."""
    before = read_evaluation(storage)
    together = before.merged(evaluation) if before else evaluation
    text = json.dumps(together.model_dump(mode="json"), ensure_ascii=False, indent=1)
    storage.write_text(EVALUATION_FILE, text + "\n")
    return together
