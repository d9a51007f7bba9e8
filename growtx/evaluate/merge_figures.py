"""The two figures of a merge: bits per byte of members and rules by domain, and member weights along a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from growtx.evaluate.merge_scores import MergeScores
from growtx.evaluate.plot_style import Theme, label_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_STYLE = {"member": (0, "o"), "control": (6, "D"), "rule": (2, "s"), "fitted rule": (1, "^")}
MOST_SHOWN = 1.6  # times the best member's value; what is worse is not drawn to scale
SHORTEST_LABEL = 0.04  # share of the axis that a piece needs to be written into


def scores_by_domain(scores: MergeScores, chosen: str, theme: Theme) -> Figure:
    """A panel for each domain, a row for each member and rule, the best member as a line."""
    names = list(scores.kinds)[::-1]
    domains = list(scores.domains)
    columns = min(4, len(domains))
    rows = -(-len(domains) // columns)
    height = 0.9 + rows * (0.9 + 0.27 * len(names))
    figure, panels = new_figure(theme, width=11, columns=columns, panels=len(domains), height=height)
    for number, (axes, domain) in enumerate(zip(panels, domains, strict=True)):
        _panel(axes, scores, domain, names, theme)
        labels = names if number % columns == 0 else [""] * len(names)
        axes.set_yticks(range(len(names)), labels)
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color(theme.foreground)
            label.set_fontweight("bold" if name == chosen else "normal")
    figure.supxlabel("bits per byte, lower is better (bold: the rule of this ensemble)", fontsize=10.5)
    return figure


def _panel(axes: Axes, scores: MergeScores, domain: str, names: Sequence[str], theme: Theme) -> None:
    measured = scores.domains[domain]
    intervals = {name: measured.interval(name) for name in names}
    for row, name in enumerate(names):
        value, low, high = intervals[name]
        colour, marker = KIND_STYLE[scores.kinds[name]]
        axes.hlines(row, low or value, high or value, color=theme.cycle[colour], linewidth=1.6)
        axes.plot(value, row, marker, color=theme.cycle[colour], markersize=6)
    best = measured.best(scores.names("member"))
    axes.axvline(intervals[best].value, color=theme.muted, linestyle="--", linewidth=1.2, zorder=1)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.locator_params(axis="x", nbins=4)
    # Who cannot read a script at all, or was fitted badly, would squeeze everything else: cut off, said by an arrow.
    right = MOST_SHOWN * intervals[best].value
    shown = [(i.low or i.value, i.high or i.value) for i in intervals.values() if i.value <= right]
    left, right = min(low for low, _ in shown), max(high for _, high in shown)
    margin = 0.08 * (right - left) or 0.01
    axes.set_xlim(left - margin, right + margin)
    for row, name in enumerate(names):
        if intervals[name].value > right + margin:
            label = f"{intervals[name].value:.2f} →"
            axes.annotate(label, (right + margin, row), ha="right", va="center", fontsize=8.5, color=theme.muted)
    label_axes(axes, x="", y="", title=domain)
    axes.title.set_fontsize(10.5)


def weights_along_text(scores: MergeScores, parts: Sequence[tuple[str, int]], theme: Theme) -> Figure:
    """A strip for each rule: how the members share the word at each token; above them, the text's own language."""
    strips = list(scores.weights.items())
    members = scores.names("member")
    figure, panels = new_figure(theme, width=10, height=1.3 + 0.75 * len(strips), panels=len(strips) + 1)
    num_positions = len(strips[0][1])
    _languages(panels[0], parts, num_positions, theme)
    for axes, (name, weights_TN) in zip(panels[1:], strips, strict=True):
        edges_TN = np.concatenate([np.zeros((num_positions, 1)), weights_TN.cumsum(1)], axis=1)
        positions = np.arange(num_positions)
        for number, member in enumerate(members):
            lower, upper = edges_TN[:, number], edges_TN[:, number + 1]
            colour = theme.cycle[number % len(theme.cycle)]
            axes.fill_between(positions, lower, upper, step="mid", color=colour, linewidth=0, label=member)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center")
    for axes in panels:
        axes.set_xlim(-0.5, num_positions - 0.5)
        axes.grid(visible=False)
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("token of the document")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), title="member")
    return figure


def _languages(axes: Axes, parts: Sequence[tuple[str, int]], num_positions: int, theme: Theme) -> None:
    start = 0
    for number, (name, ends_before) in enumerate(parts):
        end = min(ends_before, num_positions)
        shade = theme.band if number % 2 == 0 else theme.grid
        axes.axvspan(start - 0.5, end - 0.5, color=shade, linewidth=0)
        if end - start > SHORTEST_LABEL * num_positions:
            axes.text((start + end) / 2, 0.5, name, ha="center", va="center")
        start = end
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel("text", rotation=0, ha="right", va="center")
