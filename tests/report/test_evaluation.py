from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growtx.evaluate.results import Evaluation, Overlap, Score
from growtx.report import evaluation_figures as figures
from growtx.report.comparison import comparison_headline, write_comparison
from growtx.report.evaluation import evaluation_sections
from growtx.report.plot_style import LIGHT
from growtx.storage import Storage


def score(task: str, depth: int, value: float, **changes: Any) -> Score:
    fields = {"metric": "acc", "protocol": "log-likelihood", "num_items": 100, "chance": 0.25}
    return Score(task=task, depth=depth, value=value, low=value - 0.05, high=value + 0.05, **{**fields, **changes})


@pytest.fixture
def evaluation() -> Evaluation:
    scores = [
        *(score("growtx_mmlu", depth, 0.2 + 0.1 * depth) for depth in (1, 2)),
        *(score("growtx_mmlu", depth, 0.3, metric="acc_norm") for depth in (1, 2)),
        *(score("growtx_mmlu", d, 0.1 * d, protocol="sampled letter", sigma=0.01, format_failures=0.4) for d in (1, 2)),
        *(score("growtx_mmlu", 2, 0.3, group=f"subject_{number}") for number in range(9)),
        *(score("microworld_recall", 2, 0.3, group=language) for language in ("en", "zh")),
        score("microworld_recall", 2, 0.3),
        score("growtx_mmlu", 2, 0.45, variant="control"),
        score("bits_per_byte", 2, 1.5, protocol="compression", metric="bits_per_byte", group="en", chance=None),
        score("squad", 2, 0.05, protocol="generated", metric="perplexity", chance=None).model_copy(
            update={"low": None, "high": None}
        ),
    ]
    overlap = Overlap(task="growtx_mmlu", ngram=13, num_items=100, num_too_short=10, num_overlapping=9, num_contained=1)
    return Evaluation(model="run", scores=tuple(scores), overlaps=(overlap,), notes=("xquad: no.",))


def test_every_kind_of_score_has_its_section(evaluation: Evaluation, tmp_path: Path, rough: None) -> None:
    sections = {section.title: section for section in evaluation_sections(evaluation, Storage(tmp_path))}
    assert list(sections) == [
        "Benchmark scores by depth", "mmlu by subject", "Bits per byte by language and source",
        "Overlap with the training text", "Not scored",
    ]  # fmt: skip
    main = sections["Benchmark scores by depth"]
    assert [title for title, _ in main.folded] == ["All metrics", "By language"]
    assert main.table is not None
    rows = {tuple(row[:2]): row for row in main.table.rows}
    assert rows["mmlu", "acc_norm, log-likelihood"][2:4] == ["30.0 [25.0, 35.0]"] * 2
    assert ("mmlu", "acc, log-likelihood, control") in rows
    overlap = sections["Overlap with the training text"].table
    assert overlap is not None and overlap.rows[0][-1].replace("\u00a0", " ") == "10.00 %"
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == {
        "benchmarks_against_depth", "mmlu_subjects", "compression_against_depth",
    }  # fmt: skip


def test_each_task_has_a_panel_and_each_protocol_and_model_a_line(evaluation: Evaluation) -> None:
    figure = figures.benchmarks_against_depth(evaluation, LIGHT)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert titles == ["mmlu", "microworld_recall", "squad"]
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert set(labels) == {
        "log-likelihood, this model", "sampled letter, this model", "log-likelihood, control", "chance",
    }  # fmt: skip


def test_comparison_counts_only_differences_larger_than_the_intervals(tmp_path: Path, rough: None) -> None:
    specialist = Evaluation(model="ru", scores=(score("mmlu", 2, 0.3), score("arc", 2, 0.3)))
    merged = Evaluation(model="merged", scores=(score("mmlu", 4, 0.5), score("arc", 4, 0.32)))
    page = write_comparison({"ru": specialist, "merged": merged}, Storage(tmp_path))
    assert "Clearly best: merged on 1; on 1 of 2 scores the intervals overlap." in Path(page).read_text()


def test_comparison_of_equals_names_no_winner() -> None:
    same = {("mmlu", "log-likelihood"): score("mmlu", 1, 0.3)}
    assert comparison_headline({"a": same, "b": same}).startswith("No model is clearly best")
