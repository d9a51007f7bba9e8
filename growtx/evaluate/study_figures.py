"""The figures of a study: bits per byte of every variant, the way there stage by stage, and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from growtx.evaluate import formatting as fmt
from growtx.evaluate.plot_style import LINES, MARKERS, Theme, label_axes, new_figure
from growtx.evaluate.study_results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bits_per_byte(found: list[Row], control: str, theme: Theme) -> Figure:
    """A line of points for each variant, best on top; the control's mean as a dotted line."""
    figure, (axes,) = new_figure(theme, height=1.4 + 0.42 * len(found))
    for place, row in enumerate(found):
        colour = theme.accent if row.variant == control else theme.primary
        values = [run.bits_per_byte for run in row.runs]
        axes.plot(values, [place] * len(values), "o", color=colour, mfc="none", mew=1.6)
        axes.vlines(row.mean, place - 0.3, place + 0.3, color=colour, linewidth=3)
        axes.annotate(
            fmt.decimal(row.mean), (max(values), place), (10, 0), textcoords="offset points", va="center", zorder=5
        )
        if row.variant == control:
            axes.axvline(row.mean, color=theme.muted, linestyle=":", linewidth=1.4, zorder=0)
    axes.set_yticks(range(len(found)), [row.variant for row in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    label_axes(axes, x="held-out bits per byte after the last stage", y="")
    return figure


def stages(found: list[Row], theme: Theme) -> Figure:
    """First seed: from the start to the end of each stage, over the share of the work done so far."""
    figure, (axes,) = new_figure(theme, height=4.6)
    lowest = min(row.mean for row in found)
    highest = max(row.runs[0].stages[0].bits_per_byte for row in found)
    top = highest + 0.35 * (highest - lowest) + 0.05
    names = sorted(row.variant for row in found)  # so that a variant keeps its colour in every comparison
    for row in found:
        number = names.index(row.variant)
        run = row.runs[0]
        ends = [stage.bits_per_byte for stage in run.stages]
        starts = [stage.bits_per_byte_start for stage in run.stages]
        xs = [x / len(ends) for at in range(len(ends)) for x in (at, at + 1)]
        ys = [
            y for start, end in zip(starts, ends, strict=True) for y in (end if start is None else min(start, top), end)
        ]
        colour = theme.cycle[number % len(theme.cycle)]
        line, marker = LINES[(number // len(theme.cycle)) % len(LINES)], MARKERS[number % len(MARKERS)]
        axes.plot(xs, ys, line, color=colour, linewidth=1.3)
        axes.plot(xs[1::2], ys[1::2], marker, color=colour, markersize=5)
        axes.plot([], [], line, color=colour, linewidth=1.3, marker=marker, markersize=5, label=row.variant)
        for x, start in zip(xs[2::2], starts[1:], strict=True):
            if start is not None and start > top:
                label: dict[str, Any] = {"textcoords": "offset points", "va": "top", "color": colour, "fontsize": 8}
                axes.annotate(f"↑ {start:.2f}", (x, top), (3, -3), **label)
            elif start is not None:
                axes.plot([x], [start], marker, color=colour, mfc="none", markersize=5)
    axes.set_ylim(lowest - 0.05 * (top - lowest), top)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    label_axes(axes, x="share of the variant's stages", y="held-out bits per byte")
    figure.legend(loc="outside right upper", fontsize=8.5)
    return figure


def costs(found: list[Row], theme: Theme) -> Figure:
    """Active parameters, peak memory and seconds of every variant."""
    figure, panels = new_figure(theme, width=11.0, height=1.4 + 0.36 * len(found), columns=3)
    measured: tuple[tuple[str, Callable[[float], str], list[float]], ...] = (
        ("active parameters", fmt.count, [row.runs[0].active_parameters for row in found]),
        ("peak memory of a worker", fmt.size, [row.runs[0].peak_memory_bytes for row in found]),
        ("seconds in stages", fmt.duration, [row.runs[0].seconds for row in found]),
    )
    for panel, (name, words, values) in enumerate(measured):
        axes = panels[panel]
        axes.barh(range(len(found)), values, 0.62, color=theme.primary)
        for place, value in enumerate(values):
            axes.annotate(words(value), (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(found)), [row.variant for row in found] if panel == 0 else [""] * len(found))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(values))
        axes.set_xticks([])
        axes.grid(visible=False)
        label_axes(axes, x="", y="", title=name)
    return figure
