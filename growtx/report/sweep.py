"""What a sweep found, as sections of a run's report: values against score, the best of each stage, what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from growtx import formatting as fmt
from growtx.report.page import Section, Table
from growtx.report.plot_style import Theme, label_axes, new_figure, save
from growtx.storage import Storage
from growtx.store.trials import TrialRecord, best_trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The figures of a search: trials on their way through each stage, and every trial by one of its values.


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


DRAWN = ("learning_rate", "lora.rank", "global_batch_size", "init")  # the values that get a figure of their own


def sweep_sections(records: Sequence[TrialRecord], storage: Storage) -> Iterator[Section]:
    """The sections of a run directory that holds trials."""
    stages = {stage: trials for stage, trials in by_stage(records).items() if scored(trials)}
    if not stages:
        return
    yield Section(
        "Search: the best of each stage",
        "Each stage was searched on the best model of the stage before. The plan's own values were a trial like any "
        "other, so gains are relative to them at equal tokens.",
        table=_best_table(stages),
        note="The winner was chosen on the held-out windows that it is reported on; that flatters it slightly.",
    )
    yield Section(
        "Search: progress of the trials",
        "Held-out bits per byte inside each stage, lower is better. A triangle is a trial that the scheduler stopped; "
        "the thick line is the best one.",
        save(partial(ways_through_stages, stages), storage, "search_trials"),
        folded=[("All trials", _trial_table(records))],
    )
    for key in DRAWN:
        if len({str(r.values[key]) for r in scored(records) if key in r.values}) > 1:
            name = key.replace(".", "_")
            yield Section(
                f"Search: {key.replace('_', ' ').replace('.', ' ')}",
                "Every trial by this value; its other values differ too. Stopped trials have the score of their last "
                "evaluation, which finishing would have lowered.",
                save(partial(values_against_score, stages, key), storage, f"search_{name}"),
                table=_value_table(stages, key),
            )
    yield Section(
        "Search: what it cost",
        "FLOPs of all trials' training steps, beside the same steps with every block trained: what the search "
        "would cost without a frozen prefix. Seconds are those of optimizer steps, summed over trials.",
        table=_cost_table(stages),
        note="Counted by growtx/models/counting.py; a cached prefix is not counted, it is computed once for all "
        "trials. The monolithic time is an estimate: the measured one times the ratio of FLOPs.",
    )


def _keys(records: Sequence[TrialRecord]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record.values))


def _best_table(stages: Stages) -> Table:
    keys = _keys([record for records in stages.values() for record in records])
    rows = []
    for stage, records in stages.items():
        best = best_trial(list(records))
        planned = next((r for r in records if r.planned and r.state == "finished"), None)
        if best is None:
            continue
        gain = None
        if planned is not None and planned.bits_per_byte is not None and best.bits_per_byte is not None:
            gain = best.bits_per_byte - planned.bits_per_byte
        states = [record.state for record in records]
        rows.append(
            [
                f"{stage} · {best.stage_name}",
                best.label,
                fmt.decimal(best.bits_per_byte, 4),
                fmt.signed(gain, 4) if planned else "stopped early",
                *(_show(best.values.get(key)) for key in keys),
                " / ".join(str(states.count(state)) for state in ("finished", "stopped", "failed")),
            ]
        )
    headers = ["stage", "trial", "bits per byte", "change from the plan's", *keys, "finished / stopped / failed"]
    return Table(headers, rows)


def _trial_table(records: Sequence[TrialRecord]) -> Table:
    keys = _keys(records)
    rows = [
        [
            f"{record.stage} · {record.stage_name}",
            record.label + (" (planned)" if record.planned else ""),
            record.error or record.state,
            fmt.decimal(record.bits_per_byte, 4),
            fmt.abbreviated(record.num_tokens),
            fmt.duration(record.seconds),
            *(_show(record.values.get(key)) for key in keys),
        ]
        for record in records
    ]
    return Table(["stage", "trial", "outcome", "bits per byte", "tokens", "time", *keys], rows, text_columns=(0, 1, 2))


def _value_table(stages: Stages, key: str) -> Table:
    """The points of a figure: stage, value, bits per byte, trial and whether it went to its end; best ones first."""
    rows = [
        [
            f"{stage} · {record.stage_name}",
            _show(record.values[key]),
            fmt.decimal(record.bits_per_byte, 4),
            record.label,
            record.state,
        ]
        for stage, records in stages.items()
        for record in sorted(scored(records), key=lambda record: record.bits_per_byte or 0.0)
        if key in record.values
    ]
    return Table(["stage", key, "bits per byte", "trial", "outcome"], rows, text_columns=(0, 3, 4))


def _cost_table(stages: Stages) -> Table:
    rows = []
    totals = [0.0] * 4
    for stage, records in stages.items():
        flops = sum(record.flops for record in records)
        monolithic = sum(record.monolithic_flops for record in records)
        seconds = sum(record.seconds for record in records)
        parts = [flops, monolithic, seconds, seconds * monolithic / flops if flops else 0.0]
        totals = [total + part for total, part in zip(totals, parts, strict=True)]
        rows.append([f"{stage} · {records[0].stage_name}", str(len(records)), *_cost(parts)])
    rows.append(["all", str(sum(map(len, stages.values()))), *_cost(totals)])
    headers = ["stage", "trials", "FLOPs", "monolithic FLOPs", "ratio", "time", "monolithic time (estimate)"]
    return Table(headers, rows)


def _cost(parts: Sequence[float]) -> list[str]:
    flops, monolithic, seconds, estimate = parts
    ratio = f"{monolithic / flops:.2f} x" if flops else fmt.MISSING
    return [f"{flops:.2e}", f"{monolithic:.2e}", ratio, fmt.duration(seconds), fmt.duration(estimate)]


def _show(value: Any) -> str:
    if value is None:
        return fmt.MISSING
    if isinstance(value, float):
        return f"{value:.4g}"
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
