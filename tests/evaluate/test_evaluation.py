from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from growtx.evaluate.evaluation import BenchmarkConfig, benchmark_config, check_language, evaluate_model
from growtx.exceptions import ConfigError, DataError

pytest.importorskip("lm_eval")


def test_both_protocols_stand_side_by_side(model: Any, tokenizer: Any, questions_dir: Path) -> None:
    config = BenchmarkConfig(tasks=("growtx_mmlu",), data_dir=str(questions_dir), num_runs=3)
    evaluation = evaluate_model(model, tokenizer, config)
    whole = {score.protocol: score for score in evaluation.scores if not score.group}
    assert set(whole) == {"log-likelihood", "sampled letter"}
    assert whole["sampled letter"].num_runs == 3
    assert all(score.depth == 2 for score in evaluation.scores)


def test_bits_per_byte_come_by_group(model: Any, tokenizer: Any) -> None:
    texts = {"en": ["Anna lives in Berlin"], "zh": ["安娜住在柏林"]}
    evaluation = evaluate_model(model, tokenizer, BenchmarkConfig(tasks=("bits_per_byte",)), texts=texts)
    assert [score.group for score in evaluation.scores] == ["en", "zh"]


def test_a_task_that_cannot_be_scored_leaves_the_others_alone(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    config = BenchmarkConfig(tasks=("growtx_mmlu", "bits_per_byte"), data_dir=str(tmp_path))
    evaluation = evaluate_model(model, tokenizer, config, texts={"en": ["Anna"]})
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
