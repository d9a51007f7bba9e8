"""What lm-eval returns for a task, as scores: its own numbers, with intervals, baselines and cut prompts added."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from growtx.evaluate import task_scoring
from growtx.evaluate.intervals import Interval, bootstrap_mean
from growtx.evaluate.results import Score

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


# What multiple choice scores without a model: a score that is not above these shows no knowledge.


def chance(choices: Sequence[Sequence[str]]) -> float:
    """Share of right answers that a guess is expected to give."""
    return sum(1 / len(texts) for texts in choices) / len(choices)


def shortest(choices: Sequence[Sequence[str]], targets: Sequence[int]) -> float:
    """Score of always choosing the shortest answer, which raw log-likelihoods tend to favour."""
    lengths = [[len(text) for text in texts] for texts in choices]
    return sum(row.index(min(row)) == target for row, target in zip(lengths, targets, strict=True)) / len(targets)


def majority(choices: Sequence[Sequence[str]], targets: Sequence[int]) -> float:
    """Score of always choosing, among the offered answers, the one that is most often right elsewhere.

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


@dataclass(frozen=True)
class TaskOutcome:
    """lm-eval's result for one leaf task: metric values and a row per question."""

    name: str
    group: str  # the requested name, if that is a group of several tasks
    values: dict[str, float]
    rows: list[dict[str, Any]]
    is_multiple_choice: bool


def pooled(name: str, outcomes: Sequence[TaskOutcome]) -> TaskOutcome:
    """A group as one task: every question of its tasks counts the same."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    shared = set.intersection(*(set(outcome.values) for outcome in outcomes))
    columns = {metric: [row[metric] for row in rows if metric in row] for metric in sorted(shared)}
    means = {
        metric: sum(column) / len(column)
        for metric, column in columns.items()
        if all(isinstance(item, (int, float)) for item in column)
    }
    return TaskOutcome(name, "", means, rows, all(outcome.is_multiple_choice for outcome in outcomes))


def scores_of(outcome: TaskOutcome, model: HFLM, depth: int) -> Iterator[Score]:
    """Every metric of a task as a score, and by subject where its questions have more than one."""
    truncated = truncated_share(outcome.rows, model)
    protocol: Any = "log-likelihood" if outcome.is_multiple_choice else "generated"
    task, part = (outcome.group, outcome.name) if outcome.group else (outcome.name, "")
    for metric, value in outcome.values.items():
        rows = [row for row in outcome.rows if metric in row]
        for subject, members in ((part, rows), *_by_subject(rows)):
            interval = interval_of([row[metric] for row in members], metric, value if members is rows else None)
            without_model = _baselines(members) if outcome.is_multiple_choice else _without_answer(members, metric)
            yield Score(
                task=task,
                metric=metric,
                protocol=protocol,
                depth=depth,
                group=subject,
                **interval._asdict(),
                num_items=len(members),
                truncated=truncated,
                **without_model,
            )


def interval_of(values: Sequence[Any], metric: str, value: float | None) -> Interval:
    """The interval around lm-eval's own value; without ends for a metric that is not the mean of its rows."""
    if isinstance(values[0], task_scoring.TranslationPair):
        return task_scoring.corpus_interval(metric, values)
    if all(isinstance(item, (int, float)) for item in values):
        interval = bootstrap_mean(values)
        if value is None or math.isclose(interval.value, value, rel_tol=1e-9, abs_tol=1e-12):
            return interval
    assert value is not None
    return Interval(value, None, None)


def truncated_share(rows: Sequence[dict[str, Any]], model: HFLM) -> float:
    """Share of questions that do not fit into the context with their answer: lm-eval drops the prompt's beginning."""
    longest = (max(_num_tokens(arguments, model) for arguments in row["arguments"]) for row in rows)
    return sum(int(length > model.max_length) for length in longest) / len(rows)


def _num_tokens(arguments: Sequence[Any], model: HFLM) -> int:
    """Tokens of a request: the prompt, and the continuation to score or the room to generate in."""
    prompt, *rest = arguments
    answer = rest[0] if rest else ""
    room = answer.get("max_gen_toks", model.max_gen_toks) if isinstance(answer, dict) else len(model.tok_encode(answer))
    return len(model.tok_encode(prompt)) + int(room or 0)


def _by_subject(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    subjects: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        subjects.setdefault(str(row["doc"].get("subject") or ""), []).append(row)
    return sorted(subjects.items()) if len(subjects) > 1 else []


def _without_answer(rows: list[dict[str, Any]], metric: str) -> dict[str, float]:
    """The score of always saying that the text holds no answer, where that is right for some questions."""
    answers = [row["doc"].get("answers") for row in rows]
    share = sum(found is not None and not found for found in answers) / len(answers)
    return {"majority": share} if share and metric in ("f1", "exact_match") else {}


def _baselines(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Baselines that need no model; majority and shortest only if the right choice is given by its index."""
    choices = [[str(continuation) for _, continuation in row["arguments"]] for row in rows]
    known: dict[str, float] = {"chance": chance(choices)}
    targets = [row["target"] for row in rows]
    if all(isinstance(target, int) for target in targets):
        known["majority"] = majority(choices, targets)
        known["shortest"] = shortest(choices, targets)
    return known
