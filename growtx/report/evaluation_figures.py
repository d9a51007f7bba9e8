"""Benchmark scores by depth: tasks (the paper's Figure 2), MMLU by subject (Figure 3), bits per byte by group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from growtx.evaluate.results import Evaluation, Score
from growtx.report.plot_style import LINES, MARKERS, Theme, label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The metric that stands for a task, by protocol; the tables show the others too.
LEADING_METRICS = ("acc_norm", "acc", "f1", "chrf", "exact_match", "bleu", "bits_per_byte")

APART = 0.07  # blocks between the lines of a panel, so that intervals of one depth do not hide each other


def short_name(task: str) -> str:
    return task.removeprefix("growtx_")


def whole_tasks(scores: Iterable[Score]) -> list[Score]:
    """Scores of tasks as a whole: one for each task, protocol, model and depth, by the leading metric."""
    leading: dict[tuple[str, str, str, int], Score] = {}
    for score in scores:
        if not score.group and score.protocol != "compression":
            key = (score.task, score.protocol, score.variant, score.depth)
            if key not in leading or _rank(score.metric) < _rank(leading[key].metric):
                leading[key] = score
    return list(leading.values())


def subject_scores(scores: Iterable[Score]) -> dict[str, list[Score]]:
    """The model's own scores on the parts of each task, leading metric only; tasks without parts are left out."""
    by_task: dict[str, list[Score]] = {}
    for score in scores:
        if score.group and score.protocol != "compression" and not score.variant:
            by_task.setdefault(score.task, []).append(score)
    return {
        task: [score for score in members if score.metric == min((m.metric for m in members), key=_rank)]
        for task, members in by_task.items()
    }


def compression_scores(scores: Iterable[Score]) -> list[Score]:
    return [score for score in scores if score.protocol == "compression"]


def series(score: Score, name: str) -> str:
    """A line's label: just `name` for the model itself."""
    return f"{name}, {score.variant}" if score.variant else name


def benchmarks_against_depth(evaluation: Evaluation, theme: Theme) -> Figure:
    """A panel for each task: score with its 95 % interval at every depth, a line for each protocol and model."""
    scores = whole_tasks(evaluation.scores)
    tasks = list(dict.fromkeys(score.task for score in scores))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, panels = new_figure(theme, columns=columns, panels=len(tasks), height=0.5 + 2.5 * rows)
    lines = list(dict.fromkeys((score.protocol, score.variant) for score in scores))
    beside = any(variant for _, variant in lines)
    for axes, task in zip(panels, tasks, strict=True):
        members = [score for score in scores if score.task == task]
        for number, (protocol, variant) in enumerate(lines):
            line = [score for score in members if (score.protocol, score.variant) == (protocol, variant)]
            label = f"{protocol}, {variant or 'this model'}" if beside else protocol
            shift = (number - (len(lines) - 1) / 2) * APART
            _line(axes, line, theme, number, label=label, percent=True, shift=shift)
        _baseline_lines(axes, members, theme)
        _depth_axis(axes, evaluation.depths)
        axes.set_ylim(bottom=0)
        label_axes(axes, x="", y="", title=short_name(task))
        axes.title.set_fontsize(10.5)
    figure.supxlabel("blocks", fontsize=10.5)
    figure.supylabel("score, %", fontsize=10.5)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
    return figure


def subjects_against_depth(task: str, scores: Sequence[Score], theme: Theme) -> Figure:
    """A row for each subject: one dot per depth, darker to lighter with depth, the interval of the deepest."""
    depths = sorted({score.depth for score in scores})
    last = {score.group: score for score in scores if score.depth == depths[-1]}
    subjects = sorted(last, key=lambda subject: last[subject].value)
    figure, (axes,) = new_figure(theme, height=1.6 + 0.19 * len(subjects))
    colours = _by_depth(len(depths), theme)
    for colour, depth in zip(colours, depths, strict=True):
        at = {score.group: 100 * score.value for score in scores if score.depth == depth}
        rows = [row for row, subject in enumerate(subjects) if subject in at]
        deepest = depth == depths[-1]
        axes.scatter(
            [at[subjects[row]] for row in rows],
            rows,
            s=42 if deepest else 20,
            color=colour,
            zorder=3 if deepest else 2,
            label=f"{depth} blocks" if depth > 1 else "1 block",
        )
    for row, subject in enumerate(subjects):
        if last[subject].low is not None:
            axes.hlines(
                row, 100 * (last[subject].low or 0), 100 * (last[subject].high or 0), color=theme.grid, zorder=1
            )
    chance = last[subjects[0]].chance
    if chance is not None:
        axes.axvline(100 * chance, color=theme.accent, linestyle=":", label="chance")
    axes.set_yticks(range(len(subjects)), [subject.replace("_", " ") for subject in subjects], fontsize=8)
    axes.set_ylim(-0.8, len(subjects) - 0.2)
    axes.grid(axis="y", visible=False)
    label_axes(axes, x=f"{short_name(task)}, % (bar: 95 % interval of the deepest)", y="")
    figure.legend(loc="outside upper center", ncols=min(6, len(depths) + 1))
    return figure


def compression_against_depth(evaluation: Evaluation, theme: Theme) -> Figure:
    """Bits per byte of every group of text, with intervals."""
    scores = compression_scores(evaluation.scores)
    figure, (axes,) = new_figure(theme)
    for number, label in enumerate(dict.fromkeys(series(score, score.group) for score in scores)):
        _line(axes, [score for score in scores if series(score, score.group) == label], theme, number, label=label)
    _depth_axis(axes, evaluation.depths)
    label_axes(axes, x="blocks", y="bits per byte")
    axes.legend(loc="best")
    return figure


def _baseline_lines(axes: Axes, scores: Sequence[Score], theme: Theme) -> None:
    """Lines for chance and, where it is clearly higher, for the majority baseline."""
    chance = scores[0].chance or 0.0
    if chance:
        axes.axhline(100 * chance, color=theme.muted, linestyle=":", linewidth=1.5, label="chance")
    majority = max((score.majority for score in scores if score.majority is not None), default=chance)
    if majority > chance + 0.03:
        axes.axhline(
            100 * majority, color=theme.muted, linestyle="--", linewidth=1.0, label="majority, without a model"
        )


def _line(
    axes: Axes,
    scores: list[Score],
    theme: Theme,
    number: int,
    *,
    label: str,
    percent: bool = False,
    shift: float = 0.0,
) -> None:
    if not scores:
        return
    scores = sorted(scores, key=lambda score: score.depth)
    values, errors = with_errors(scores, percent=percent)
    style: dict[str, Any] = {
        "color": theme.cycle[number % len(theme.cycle)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }
    axes.errorbar(
        [score.depth + shift for score in scores], values, yerr=errors, capsize=3, elinewidth=1.2, label=label, **style
    )


def with_errors(scores: Sequence[Score], *, percent: bool) -> tuple[list[float], np.ndarray[Any, Any]]:
    """Values and distances to the ends of their intervals [2, n]; no distance where no interval is known."""
    scale = 100 if percent else 1
    below = [scale * (score.value - (score.value if score.low is None else score.low)) for score in scores]
    above = [scale * ((score.value if score.high is None else score.high) - score.value) for score in scores]
    return [scale * score.value for score in scores], np.clip([below, above], 0, None)


def _depth_axis(axes: Axes, depths: Sequence[int]) -> None:
    axes.set_xticks(depths)
    axes.set_xlim(min(depths) - 0.5, max(depths) + 0.5)
    axes.grid(axis="x", visible=False)


def _by_depth(num_depths: int, theme: Theme) -> list[Any]:
    from matplotlib import colormaps

    ends = (0.0, 0.85) if theme.name == "light" else (0.35, 1.0)
    shades = np.linspace(*ends, num_depths)
    return list(colormaps[theme.sequential](shades if theme.name == "dark" else shades[::-1]))


def _rank(metric: str) -> int:
    return LEADING_METRICS.index(metric) if metric in LEADING_METRICS else len(LEADING_METRICS)
