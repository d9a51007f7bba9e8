from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtx.evaluate import outcomes

harness = pytest.importorskip("growtx.evaluate.harness")


@pytest.fixture(scope="module")
def wrapped(model: Any, tokenizer: Any) -> Any:
    return harness.HarnessModel(model, tokenizer, 4)


def test_intervals_and_baselines_stand_beside_lm_evals_own_number(wrapped: Any, questions_dir: Path) -> None:
    loaded = harness.load_task("growtx_mmlu", data_dir=str(questions_dir))
    (outcome,) = harness.run_task(wrapped, loaded)
    scores = {score.group: score for score in outcomes.scores_of(outcome, wrapped, depth=2)}
    whole = scores[""]
    assert set(scores) == {"", "people", "places"}
    assert whole.value == outcome.values["acc"]
    assert (whole.chance, whole.num_items) == (0.25, 12)
    assert whole.majority is not None and whole.shortest is not None
    assert whole.low is not None and whole.high is not None and whole.low < whole.value < whole.high


def test_prompts_longer_than_the_context_are_counted(wrapped: Any) -> None:
    rows = [
        {"arguments": [("Anna " * length, answer)]}
        for length, answer in ((1, " x"), (500, " x"), (1, {"max_gen_toks": 200}))
    ]
    assert outcomes.truncated_share(rows, wrapped) == pytest.approx(2 / 3)


def test_a_group_is_the_mean_of_its_questions_not_of_its_tasks() -> None:
    few = outcomes.TaskOutcome("a", "both", {"acc": 1.0, "f1": 1.0}, [{"acc": 1.0}], True)
    many = outcomes.TaskOutcome("b", "both", {"acc": 0.0}, [{"acc": 0.0}] * 3, True)
    both = outcomes.pooled("both", [few, many])
    assert (both.name, both.values, len(both.rows)) == ("both", {"acc": 0.25}, 4)


def test_an_interval_is_of_the_value_that_it_stands_beside() -> None:
    values = [0.1, 0.4, 0.9, 0.2]
    assert outcomes.interval_of(values, "f1", 0.4) == outcomes.interval_of(values, "f1", None)
    assert outcomes.interval_of(values, "f1", 0.5) == (0.5, None, None)  # lm-eval's own is not the mean of its rows
    assert outcomes.interval_of(["no", "numbers"], "f1", 0.5) == (0.5, None, None)
