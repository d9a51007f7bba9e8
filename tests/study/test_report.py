"""What a study says of runs whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from growtx.report.plot_style import LIGHT
from growtx.storage import Storage
from growtx.study import report
from growtx.study.report import comparisons, sentences, write_study_report
from growtx.study.results import RunResult, StageResult, StudyResults, against, variant_summaries


def run(
    variant: str, seed: int, bits: float | None, *, rate: float = 1e-3, equal: str = "tokens", failure: str = ""
) -> RunResult:
    """Two stages that end 0.5 above `bits` and at it; the second starts 1.0 above the end of the first."""
    values = [] if bits is None else [(bits + 0.5, 9.0), (bits, bits + 1.5)]
    stages = tuple(
        StageResult(
            name=f"depth-{depth}",
            num_blocks=depth,
            bits_per_byte=end,
            bits_per_byte_start=start,
            active_parameters=1000 * depth,
            total_parameters=5000,
            peak_memory_bytes=2**30,
            seconds=10.0,
        )
        for depth, (end, start) in enumerate(values, start=1)
    )
    return RunResult(
        variant=variant,
        equal=equal,
        learning_rate=rate,
        seed=seed,
        directory=f"runs/{variant}-{equal}-{rate}-{seed}",
        flops=1e12,
        num_tokens=1000,
        is_finished=bits is not None,
        failure=failure,
        stages=stages,
    )


def study(*runs: RunResult, equal: tuple[str, ...] = ("tokens",)) -> StudyResults:
    return StudyResults(name="s", control="mono", equal=equal, first_seed=0, runs=runs)


def said(results: StudyResults) -> list[str]:
    return [words.replace("\u00a0", " ") for words in sentences(results)]


def test_the_rate_that_is_best_on_the_first_seed_is_kept() -> None:
    found = variant_summaries(
        study(run("a", 0, 2.0), run("a", 0, 1.5, rate=2e-3), run("a", 1, 1.7, rate=2e-3), run("a", 1, 1.0))
    )
    assert [(row.learning_rate, row.mean) for row in found] == [(2e-3, pytest.approx(1.6))]
    assert found[0].is_at_edge and found[0].rates_tried == {1e-3: 2.0, 2e-3: 1.5}
    assert found[0].spikes == [pytest.approx(1.0)]


def test_differences_are_paired_by_seed_and_sure_when_their_interval_excludes_zero() -> None:
    pairs = [(2.00, 1.91), (2.30, 2.20), (1.80, 1.69)]
    runs = [
        one for seed, (control, own) in enumerate(pairs) for one in (run("mono", seed, control), run("a", seed, own))
    ]
    best, control = variant_summaries(study(*runs))
    gap = against(best, control)
    assert gap.value == pytest.approx(-0.1) and gap.half_width == pytest.approx(4.303 * 0.01 / 3**0.5) and gap.is_sure
    assert said(study(*runs)) == [
        "At equal tokens, a is best with 1.933 ± 0.256 bits per byte, 0.100 (4.9 %) below the control, "
        "95 % interval ± 0.025 (mono: 2.033 ± 0.252). Significantly better than the control: a."
    ]


def test_many_better_variants_are_counted_and_not_named() -> None:
    better = [run(name, seed, 1.5 + seed / 10) for name in "abcde" for seed in (0, 1)]
    worse = [run("z", seed, 3.0 + seed / 10) for seed in (0, 1)]
    (sentence,) = said(study(*better, *worse, run("mono", 0, 2.0), run("mono", 1, 2.1)))
    assert sentence.endswith("Significantly better than the control: 5 of 6 others.")


def test_one_seed_has_no_interval_and_failures_and_gaps_are_said() -> None:
    words = said(
        study(run("mono", 0, 1.5), run("a", 0, 1.6), run("b", 0, None, failure="it diverged."), run("c", 0, None))
    )
    assert words == [
        "At equal tokens, mono is best with 1.500 bits per byte, the control; next is a, "
        "0.100 (6.7 %) above the control on one seed, so without an interval.",
        "1 run failed: b-tokens-0.001-0 (it diverged).",
        "1 run of 4 not finished; --resume continues.",
    ]


def test_a_variant_without_runs_of_its_own_in_a_comparison_stands_there_with_those_before() -> None:
    results = study(run("mono", 0, 1.5), run("a", 0, 1.6), run("a", 0, 1.4, equal="flops"), equal=("tokens", "flops"))
    shown = {measure: [(row.variant, row.mean) for row in found] for measure, found in comparisons(results).items()}
    assert shown == {"tokens": [("mono", 1.5), ("a", 1.6)], "flops": [("a", 1.4), ("mono", 1.5)]}


def test_the_page_holds_the_numbers_and_a_picture_for_each_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text("name: s\nprovenance: {git_commit: abc}\n")
    results = study(run("mono", 0, 1.5), run("a", 0, 1.4), run("b", 0, None, failure="the loss is not finite"))
    names: list[str] = []

    def save(draw: object, storage: object, name: str) -> str:
        figure = draw(LIGHT)  # type: ignore[operator]
        assert figure.axes
        names.append(name)
        return f"<i>{name}</i>"

    monkeypatch.setattr(report, "save", save)
    page = Path(write_study_report(Storage(str(tmp_path)), results)).read_text()
    assert names == ["bits_per_byte_tokens", "stages_tokens", "costs_tokens"]
    assert "9.000 → 1.900" in page, "every stage's start and end"
    assert "1.400" in page and "the loss is not finite" in page and "abc" in page


def test_a_start_above_the_axis_is_an_arrow_with_its_number() -> None:
    (row,) = variant_summaries(study(run("a", 0, 1.4)))
    (axes,) = report.stages([row], LIGHT).axes
    assert [text.get_text() for text in axes.texts] == ["↑ 2.90"], "the untrained model has its number in the table"
