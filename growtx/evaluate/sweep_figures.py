"""The figures of a search: trials on their way through each stage, and every trial by one of its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from growtx.evaluate.plot_style import Theme, label_axes, new_figure
from growtx.store.trials import TrialRecord, best_trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Stages = Mapping[int, Sequence[TrialRecord]]  # the trials of each stage, in order
LOG_KEYS = ("learning_rate", "lora.rank", "global_batch_size")
WORST_SHOWN = 1.5  # times the best: a diverged trial would squeeze all others


def by_stage(records: Sequence[TrialRecord]) -> dict[int, list[TrialRecord]]:
    """The trials of each stage."""
    return {stage: [r for r in records if r.stage == stage] for stage in sorted({r.stage for r in records})}


def scored(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that were measured."""
    return [record for record in records if record.bits_per_byte is not None and record.state != "failed"]


def ways_through_stages(stages: Stages, theme: Theme) -> Figure:
    """A panel for each stage: bits per byte at every evaluation of every trial."""
    figure, panels = _panels(stages, theme)
    for axes, records in zip(panels, stages.values(), strict=True):
        best = best_trial(list(records))
        top = _top(records)
        for record in scored(records):
            points = [(100 * at.fraction, at.bits_per_byte) for at in record.evaluations]
            if record.state == "finished":
                points.append((100.0, record.bits_per_byte or 0.0))
            if not points:
                continue
            is_best = best is not None and record.number == best.number
            colour, width = (theme.accent, 3.0) if is_best else (theme.primary, 1.2)
            shares, scores = [x for x, _ in points], [min(y, top) for _, y in points]
            axes.plot(shares, scores, color=colour, linewidth=width, zorder=3 if is_best else 2)
            axes.plot(shares[-1], scores[-1], "o" if record.state == "finished" else "v", color=colour, markersize=6)
        label_axes(axes, x="% of the stage", y="bits per byte", title=_title(records))
    return figure


def values_against_score(stages: Stages, key: str, theme: Theme) -> Figure:
    """A panel for each stage: every trial by one of its values, hollow where it was stopped."""
    found = {stage: [r for r in scored(records) if key in r.values] for stage, records in stages.items()}
    figure, panels = _panels({stage: records for stage, records in found.items() if records}, theme)
    for axes, records in zip(panels, filter(None, found.values()), strict=True):
        _by_value(axes, records, key, theme)
        label_axes(axes, x=key.replace("_", " ").replace(".", " "), y="bits per byte", title=_title(records))
    return figure


def _by_value(axes: Axes, records: Sequence[TrialRecord], key: str, theme: Theme) -> None:
    is_numeric = all(isinstance(record.values[key], (int, float)) for record in records)
    names = [] if is_numeric else sorted({_name(record.values[key]) for record in records})
    best, top = best_trial(list(records)), _top(records)
    for record in records:
        x = record.values[key] if is_numeric else names.index(_name(record.values[key]))
        is_best = best is not None and record.number == best.number
        colour = theme.accent if is_best else theme.primary
        fill = colour if record.state == "finished" else "none"
        marker = "D" if record.planned else "o"
        axes.plot(x, min(record.bits_per_byte or 0.0, top), marker, color=colour, mfc=fill, ms=9 if is_best else 6)
    if is_numeric and key in LOG_KEYS:
        axes.set_xscale("log")
    elif not is_numeric:
        axes.set_xticks(range(len(names)), names)
        axes.margins(x=0.25)


def _panels(stages: Stages, theme: Theme) -> tuple[Figure, list[Axes]]:
    columns = min(4, len(stages))
    rows = -(-len(stages) // columns)
    return new_figure(theme, width=max(5.5, 3.2 * columns), height=3.4 * rows, columns=columns, panels=len(stages))


def _top(records: Sequence[TrialRecord]) -> float:
    return WORST_SHOWN * min(record.bits_per_byte or 0.0 for record in scored(records))


def _title(records: Sequence[TrialRecord]) -> str:
    return f"{records[0].stage} · {records[0].stage_name}"


def _name(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
