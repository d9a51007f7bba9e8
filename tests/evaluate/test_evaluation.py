from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from growtx.evaluate import cluster
from growtx.evaluate.evaluation import BenchmarkConfig, benchmark_config, check_language, score_task
from growtx.exceptions import ConfigError, DataError

pytest.importorskip("lm_eval")


def test_both_protocols_stand_side_by_side(model: Any, tokenizer: Any, questions_dir: Path) -> None:
    config = BenchmarkConfig(tasks=("growtx_mmlu",), data_dir=str(questions_dir), num_runs=3)
    scores = score_task(model, tokenizer, "growtx_mmlu", config)
    whole = {score.protocol: score for score in scores if not score.group}
    assert set(whole) == {"log-likelihood", "sampled letter"}
    assert whole["sampled letter"].num_runs == 3
    assert all(score.depth == 2 for score in scores)


def test_bits_per_byte_come_by_group(model: Any, tokenizer: Any) -> None:
    texts = {"en": ["Anna lives in Berlin"], "zh": ["安娜住在柏林"]}
    config = BenchmarkConfig(tasks=("bits_per_byte",))
    scores = score_task(model, tokenizer, "bits_per_byte", config, texts=texts)
    assert [score.group for score in scores] == ["en", "zh"]


def test_a_task_that_cannot_be_scored_leaves_the_others_alone(
    grown_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(jobs: cluster.Jobs) -> Iterator[tuple[tuple[str, int | None], Any]]:
        return ((key, function(*arguments)) for key, (function, arguments) in jobs.items())

    monkeypatch.setattr(cluster, "_outcomes_on_cluster", in_this_process)
    config = BenchmarkConfig(tasks=("growtx_mmlu", "bits_per_byte"), data_dir=str(tmp_path), overlap=False)
    evaluation = cluster.evaluate_path(str(grown_run), config)
    assert evaluation.tasks == ["bits_per_byte"]
    assert len(evaluation.notes) == 1 and "growtx_mmlu" in evaluation.notes[0]


def test_a_language_that_the_model_does_not_know_is_one_sentence(model: Any, tokenizer: Any) -> None:
    check_language(model, tokenizer, "task", ["Anna lives in Berlin"])
    head = model.get_output_embeddings()
    with_bias = head.bias.detach().clone()
    try:
        # A trained head has learned that what never comes is improbable.
        head.bias.data[tokenizer.encode("安娜住在柏林")] = -math.log(400)
        with pytest.raises(DataError, match="does not know the language of task"):
            check_language(model, tokenizer, "task", ["安娜住在柏林"])
    finally:
        head.bias.data.copy_(with_bias)


def test_overrides_are_checked() -> None:
    assert benchmark_config(["num_runs=3"], tasks=("bits_per_byte",), limit=None).num_runs == 3
    with pytest.raises(ConfigError, match="num_run: unknown key"):
        benchmark_config(["num_run=3"], tasks=("bits_per_byte",))
