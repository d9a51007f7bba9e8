"""Models side by side: specialists against their merge (the paper's figure), a run against its control."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from growtx import formatting as fmt
from growtx.evaluate.results import Evaluation, Score
from growtx.report.evaluation import PROTOCOL_NOTE, bracketed
from growtx.report.evaluation_figures import short_name, whole_tasks, with_errors
from growtx.report.page import Page, Section, Table, render_page
from growtx.report.plot_style import Theme, label_axes, new_figure, save
from growtx.storage import Storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARISON_FILE = "comparison.html"
Found = dict[str, dict[tuple[str, str], Score]]  # model -> (task, protocol) -> score


def write_comparison(evaluations: dict[str, Evaluation], storage: Storage, *, command: str = "") -> str:
    """Write `comparison.html` on the deepest evaluated state of each model; returns its address."""
    section = comparison_section(evaluations, storage)
    page = Page(
        title="growtx · comparison",
        headline=comparison_headline(_found(evaluations)),
        sections=[section],
        command=command,
    )
    storage.write_text(COMPARISON_FILE, render_page(page))
    return storage.path(COMPARISON_FILE)


def comparison_section(evaluations: dict[str, Evaluation], storage: Storage) -> Section:
    """The models' scores as a figure and a table."""
    found = _found(evaluations)
    return Section(
        "Models side by side",
        "The deepest evaluated state of each model. Whiskers are 95 % intervals, dotted lines are chance.",
        save(partial(models_compared, found), storage, "models_compared"),
        _table(found),
        PROTOCOL_NOTE,
    )


def comparison_headline(found: Found) -> str:
    """Which model is best on how many scores, counting only differences larger than the intervals."""
    shared = set.intersection(*(set(scores) for scores in found.values()))
    wins = dict.fromkeys(found, 0)
    for key in shared:
        best = max(found, key=lambda name: found[name][key].value)
        low = found[best][key].low
        others = [scores[key].high for name, scores in found.items() if name != best]
        wins[best] += low is not None and all(high is not None and high < low for high in others)
    clear = [f"{name} on {count}" for name, count in wins.items() if count]
    words = f"Clearly best: {', '.join(clear)}" if clear else "No model is clearly best on any score"
    return f"{words}; on {len(shared) - sum(wins.values())} of {len(shared)} scores the intervals overlap."


def models_compared(found: Found, theme: Theme) -> Figure:
    """A group of bars for each task, a bar for each model."""
    keys = _keys(found)
    figure, (axes,) = new_figure(theme, height=1.4 + 0.24 * len(keys) * (len(found) + 1))
    height = 0.8 / len(found)
    for number, (name, scores) in enumerate(found.items()):
        rows = [row for row, key in enumerate(keys) if key in scores]
        values, errors = with_errors([scores[keys[row]] for row in rows], percent=True)
        places = [row + (number - (len(found) - 1) / 2) * height for row in rows]
        colour = theme.cycle[number % len(theme.cycle)]
        axes.barh(places, values, height * 0.92, color=colour, xerr=errors, ecolor=theme.foreground, label=name)
    for row, key in enumerate(keys):
        chance = next((scores[key].chance for scores in found.values() if key in scores), None)
        if chance is not None:
            axes.vlines(100 * chance, row - 0.45, row + 0.45, color=theme.foreground, linestyle=":")
    names = [short_name(task) + ("\nsampled" if protocol == "sampled letter" else "") for task, protocol in keys]
    axes.set_yticks(range(len(keys)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    label_axes(axes, x="score, %", y="")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def _found(evaluations: dict[str, Evaluation]) -> Found:
    return {name: _deepest(evaluation) for name, evaluation in evaluations.items()}


def _deepest(evaluation: Evaluation) -> dict[tuple[str, str], Score]:
    best: dict[tuple[str, str], Score] = {}
    for score in sorted(whole_tasks(evaluation.own_scores), key=lambda score: score.depth):
        best[score.task, score.protocol] = score
    return best


def _keys(found: Found) -> list[tuple[str, str]]:
    return list(dict.fromkeys(key for scores in found.values() for key in scores))


def _table(found: Found) -> Table:
    rows = [
        [
            short_name(key[0]),
            key[1],
            *(bracketed(scores[key]) if key in scores else fmt.MISSING for scores in found.values()),
        ]
        for key in _keys(found)
    ]
    return Table(["task", "protocol", *found], rows, text_columns=(0, 1))
