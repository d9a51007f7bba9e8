from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtx.evaluate.results import Evaluation, Overlap, Score, read_evaluation, save_evaluation
from growtx.exceptions import StoreError
from growtx.storage import Storage


def score(task: str = "mmlu", depth: int = 1, value: float = 0.25, **changes: Any) -> Score:
    fields = {"metric": "acc", "protocol": "log-likelihood", "low": 0.2, "high": 0.3, "num_items": 10}
    return Score(task=task, depth=depth, value=value, **{**fields, **changes})


def test_measuring_again_replaces_and_adds(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    save_evaluation(storage, Evaluation(model="run", scores=(score(), score(depth=2))))
    save_evaluation(storage, Evaluation(model="run", scores=(score(value=0.5), score("arc"))))
    found = read_evaluation(storage)
    assert found is not None
    assert {(s.task, s.depth): s.value for s in found.scores} == {("mmlu", 1): 0.5, ("mmlu", 2): 0.25, ("arc", 1): 0.25}
    assert (found.depths, found.tasks) == ([1, 2], ["mmlu", "arc"])


def test_overlaps_are_kept(tmp_path: Path) -> None:
    overlap = Overlap(task="mmlu", ngram=13, num_items=10, num_too_short=2, num_overlapping=1, num_contained=0)
    save_evaluation(Storage(tmp_path), Evaluation(model="run", overlaps=(overlap,)))
    together = save_evaluation(Storage(tmp_path), Evaluation(model="run"))
    assert together.overlaps == (overlap,)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert read_evaluation(storage) is None
    storage.write_text("evaluation.json", '{"model": 1}')
    with pytest.raises(StoreError, match=r"evaluation\.json is damaged"):
        read_evaluation(storage)


def test_a_control_stands_beside_the_model_and_is_not_mistaken_for_it(tmp_path: Path) -> None:
    both = Evaluation(model="run", scores=(score(),)).beside(
        Evaluation(model="mono", scores=(score(value=0.4),)), "control"
    )
    save_evaluation(Storage(tmp_path), both)
    found = save_evaluation(Storage(tmp_path), both)
    assert [(s.variant, s.value) for s in found.scores] == [("", 0.25), ("control", 0.4)]
    assert [s.value for s in found.own_scores] == [0.25]
