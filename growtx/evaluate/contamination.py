"""How many test questions lie in the training text: a good score on those shows memory, not skill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from growtx.data.overlap import measure_overlap
from growtx.data.sources import DataConfig, iterate_documents
from growtx.evaluate.harness import LoadedTask
from growtx.evaluate.results import Overlap

NGRAM = 13
MOSTLY = 0.7  # a question with this share of its n-grams in the training text counts as contained


def overlaps_with(
    data: DataConfig, tasks: Iterable[LoadedTask], *, parts: Mapping[str, int] | None = None
) -> list[Overlap]:
    """Compare the questions of tasks with every training document, in one pass over them.

    Args:
        parts: how many parts of each source were trained on; those that are not named, as a whole.

    Raises:
        DataError: the training text cannot be read any more.
    """
    items = {loaded.name: item_texts(loaded) for loaded in tasks}
    training = (document.text for document in iterate_documents(data, parts=parts) if document.split == "train")
    return [
        Overlap(
            task=task,
            ngram=NGRAM,
            num_items=found.num_items,
            num_too_short=found.num_too_short,
            num_overlapping=found.num_overlapping,
            num_contained=found.num_contained(MOSTLY),
        )
        for task, found in measure_overlap(training, items, ngram=NGRAM).items()
    ]


def item_texts(loaded: LoadedTask) -> list[str]:
    """Question, choices and answer of every item."""
    return [_item_text(task, doc) for task in loaded.tasks.values() for doc in task.eval_docs]


def _item_text(task: Any, doc: Any) -> str:
    parts: list[str] = [str(task.doc_to_text(doc))]
    if task.config.doc_to_choice is not None:
        parts += task.doc_to_choice(doc)
    target = task.doc_to_target(doc)
    parts += [target] if isinstance(target, str) else [str(t) for t in target] if isinstance(target, Sequence) else []
    return " ".join(parts)
