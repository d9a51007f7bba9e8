"""What a study says: sentences, tables for the terminal, and a self-contained page."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table as TerminalTable

from growtx import formatting as fmt
from growtx.config import parse_yaml
from growtx.evaluate.results import Evaluation, read_evaluation
from growtx.report.comparison import comparison_section
from growtx.report.growth import REPORT_FILE
from growtx.report.page import Page, Section, Table, render_page
from growtx.report.plot_style import LINES, MARKERS, Theme, label_axes, new_figure, save
from growtx.storage import Storage
from growtx.store.run_records import RUN_FILE
from growtx.study.results import Difference, StudyResults, VariantSummary, against, variant_summaries

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# The figures of a study: bits per byte of every variant, the way there stage by stage, and what it takes.


def bits_per_byte(found: list[VariantSummary], control: str, theme: Theme) -> Figure:
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


def stages(found: list[VariantSummary], theme: Theme) -> Figure:
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


def costs(found: list[VariantSummary], theme: Theme) -> Figure:
    """Active parameters, peak memory and seconds of every variant."""
    figure, panels = new_figure(theme, width=11.0, height=1.4 + 0.36 * len(found), columns=3)
    measured: tuple[tuple[str, Callable[[float], str], list[float]], ...] = (
        ("active parameters", fmt.abbreviated, [row.runs[0].active_parameters for row in found]),
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


MOST_NAMES = 4  # that a headline spells out
_MEASURES = {"tokens": "equal tokens", "flops": "equal FLOPs"}
_HEADERS = (
    "variant", "bits per byte", "against control", "learning rate", "seeds", "spikes", "active", "all",
    "tokens", "FLOPs", "peak memory", "time",
)  # fmt: skip
_NOTE = (
    "Mean ± standard deviation over seeds of held-out bits per byte after the last stage. Against control: mean of the "
    "differences on the same seeds, ± its 95 % interval (Student's t), where there are several seeds. Learning rate: "
    "the best of those tried on the first seed, then used for all; * means the lowest or the highest tried, so an "
    "even better one may lie outside. Spikes: bits per byte at the start of each later stage minus those at the end "
    "of the one before. Active: parameters that receive gradients, in the stage that has most. FLOPs: computed by "
    "training, including the forward pass of the frozen prefix in every step. Peak memory: of a worker's whole process "
    "(on CPU including libraries). Time: spent in stages, without start-up, with several runs side by side."
)


def comparisons(results: StudyResults) -> dict[str, list[VariantSummary]]:
    """Rows by what the comparison holds equal, best first."""
    found = {(row.equal, row.variant): row for row in variant_summaries(results)}
    variants = list(dict.fromkeys(run.variant for run in results.runs))
    together: dict[str, list[VariantSummary]] = {}
    for measure in results.equal:
        places = [_place(results, measure, variant) for variant in variants]
        shown = [found[place] for place in places if place in found]
        if shown:
            together[measure] = sorted(shown, key=lambda row: row.mean)
    return together


def _place(results: StudyResults, measure: str, variant: str) -> tuple[str, str]:
    """Which runs stand for a variant in a comparison: its own there, or those of the comparison before."""
    own = [run.equal for run in results.runs if run.variant == variant]
    return (measure if measure in own else own[0], variant)


def sentences(results: StudyResults) -> list[str]:
    """What won by how much in each comparison, what failed, and what is missing."""
    words = [_verdict(measure, found, results.control) for measure, found in comparisons(results).items()]
    failed = [f"{run.directory.rsplit('/', 1)[-1]} ({run.failure.rstrip('.')})" for run in results.runs if run.failure]
    missing = sum(not run.is_finished and not run.failure for run in results.runs)
    if failed:
        words.append(f"{fmt.plural(len(failed), 'run')} failed: {'; '.join(failed)}.")
    if missing:
        words.append(f"{fmt.plural(missing, 'run')} of {len(results.runs)} not finished; --resume continues.")
    return words


def _verdict(measure: str, found: list[VariantSummary], control_name: str) -> str:
    best = found[0]
    start = f"At {_MEASURES[measure]}, {best.variant} is best with {_mean(best)} bits per byte"
    control = next((row for row in found if row.variant == control_name), None)
    if control is None:
        return f"{start}; the control {control_name} has not finished."
    others = [row for row in found if row is not control]
    if best is control:
        if not others:
            return f"{start}; no other variant has finished."
        second = others[0]
        return (
            f"{start}, the control; next is {second.variant}, {_difference_words(against(second, control), control)}."
        )
    surely = [row.variant for row in others if (gap := against(row, control)).is_sure and gap.value < 0]
    names = ", ".join(surely) if len(surely) <= MOST_NAMES else f"{len(surely)} of {len(others)} others"
    ahead = f" Significantly better than the control: {names}." if surely else ""
    words = _difference_words(against(best, control), control)
    return f"{start}, {words} ({control.variant}: {_mean(control)}).{ahead}"


def _difference_words(gap: Difference, control: VariantSummary) -> str:
    direction = "below" if gap.value < 0 else "above"
    size = f"{abs(gap.value):.3f} ({fmt.percent(abs(gap.value) / control.mean)}) {direction} the control"
    if gap.half_width is None:
        return f"{size} on one seed, so without an interval"
    return f"{size}, 95 % interval ± {gap.half_width:.3f}{'' if gap.is_sure else ', which includes zero'}"


def _mean(row: VariantSummary) -> str:
    return fmt.decimal(row.mean) + ("" if row.deviation is None else f" ± {fmt.decimal(row.deviation)}")


def _table(found: list[VariantSummary], results: StudyResults) -> Table:
    control = next((row for row in found if row.variant == results.control), None)
    return Table(_HEADERS, [_cells(row, control) for row in found])


def _cells(row: VariantSummary, control: VariantSummary | None) -> list[str]:
    def mean(name: str) -> float:
        return statistics.fmean(getattr(run, name) for run in row.runs)

    difference = fmt.MISSING
    if control is not None and row is not control:
        gap = against(row, control)
        difference = fmt.signed(gap.value) + ("" if gap.half_width is None else f" ± {fmt.decimal(gap.half_width)}")
    tried = f"{row.learning_rate:g}{'*' if row.is_at_edge else ''} of {len(row.rates_tried)}"
    return [
        row.variant,
        _mean(row),
        difference,
        tried,
        str(len(row.runs)),
        ", ".join(fmt.signed(value, 2) for value in row.spikes) or fmt.MISSING,
        fmt.abbreviated(row.runs[0].active_parameters),
        fmt.abbreviated(row.runs[0].stages[-1].total_parameters),
        fmt.abbreviated(row.runs[0].num_tokens),
        f"{row.runs[0].flops:.3g}",
        fmt.size(mean("peak_memory_bytes")),
        fmt.duration(mean("seconds")),
    ]


def terminal_tables(results: StudyResults) -> list[TerminalTable]:
    """A table for each comparison."""
    tables = []
    for measure, found in comparisons(results).items():
        shown = TerminalTable(title=f"{results.name}, {_MEASURES[measure]}", title_justify="left")
        for header in _HEADERS:
            shown.add_column(header, justify="left" if header == "variant" else "right", overflow="fold")
        for cells in _table(found, results).rows:
            shown.add_row(*cells)
        tables.append(shown)
    return tables


def write_study_report(study: Storage, results: StudyResults) -> str:
    """Write `report.html` and `plots/*.png` of a study with at least one finished run; returns the page's address."""
    words = sentences(results)
    run = parse_yaml(study.read_text(RUN_FILE), study.path(RUN_FILE))
    provenance = run.pop("provenance", None) or {}
    flat = {**provenance, **provenance.get("versions", {})}
    page = Page(
        title=f"growtx · study {results.name}",
        headline=words[0],
        subtitle=" ".join(words[1:]),
        sections=[section for measure in comparisons(results) for section in _sections(measure, results, study)],
        closing_sections=_task_sections(results, study),
        command=results.command,
        environment=[
            (key, str(value)) for key, value in flat.items() if value is not None and key not in ("versions", "command")
        ],
        config=yaml.safe_dump(run, sort_keys=False, allow_unicode=True),
    )
    study.write_text(REPORT_FILE, render_page(page))
    return study.path(REPORT_FILE)


def _sections(measure: str, results: StudyResults, study: Storage) -> list[Section]:
    found = comparisons(results)[measure]
    title = _MEASURES[measure]
    return [
        Section(
            f"Bits per byte at {title}",
            "Lower is better. Points are seeds, bars their mean; the dotted line is the control.",
            save(partial(bits_per_byte, found, results.control), study, f"bits_per_byte_{measure}"),
            _table(found, results),
            _NOTE,
            folded=[("Every run", _run_table(measure, results))],
        ),
        Section(
            f"Stage by stage at {title}",
            "Held-out bits per byte: hollow at the start of a stage (its new blocks are untrained, hence the spike), "
            "filled at its end. First seed; stages are drawn equally long. The untrained model starts above the axis "
            "(see the table), and so does a spike marked with an arrow.",
            save(partial(stages, found), study, f"stages_{measure}"),
            _stage_table(found),
        ),
        Section(
            f"What it costs at {title}",
            "Parameters that receive gradients, memory of a worker, and time inside the stages.",
            save(partial(costs, found), study, f"costs_{measure}"),
            _cost_table(found),
        ),
    ]


def _stage_table(found: list[VariantSummary]) -> Table:
    """Start and end of every stage of the first seed; a variant with fewer stages leaves its last columns empty."""
    most = max(len(row.runs[0].stages) for row in found)
    cells = []
    for row in found:
        stages = [
            f"{fmt.decimal(stage.bits_per_byte_start)} → {fmt.decimal(stage.bits_per_byte)}"
            for stage in row.runs[0].stages
        ]
        cells.append([row.variant, *stages, *[""] * (most - len(stages))])
    return Table(["variant", *(f"stage {number}" for number in range(1, most + 1))], cells)


def _cost_table(found: list[VariantSummary]) -> Table:
    cells = [
        [
            row.variant,
            f"{row.runs[0].active_parameters:,}",
            f"{row.runs[0].stages[-1].total_parameters:,}",
            fmt.size(row.runs[0].peak_memory_bytes),
            f"{row.runs[0].seconds:.1f}",
        ]
        for row in found
    ]
    return Table(["variant", "active parameters", "all", "peak memory", "seconds"], cells)


def _run_table(measure: str, results: StudyResults) -> Table:
    rows_of = [run for run in results.runs if (run.equal, run.variant) == _place(results, measure, run.variant)]
    cells = [
        [
            run.variant,
            f"{run.learning_rate:g}",
            str(run.seed),
            fmt.decimal(run.bits_per_byte) if run.is_finished else run.failure or "not finished",
            " → ".join(fmt.decimal(stage.bits_per_byte) for stage in run.stages) or fmt.MISSING,
            fmt.duration(run.seconds),
            run.directory,
        ]
        for run in rows_of
    ]
    headers = ["variant", "learning rate", "seed", "bits per byte", "after each stage", "time", "directory"]
    return Table(headers, cells, text_columns=(0, 6))


def _task_sections(results: StudyResults, study: Storage) -> list[Section]:
    """Task scores of the runs that have them, where at least two can be compared."""
    evaluations: dict[str, Evaluation] = {}
    for row in variant_summaries(results):
        evaluation = read_evaluation(study.child(row.runs[0].directory))
        if evaluation is not None:
            evaluations[f"{row.variant}, {_MEASURES[row.equal]}"] = evaluation
    return [comparison_section(evaluations, study)] if len(evaluations) > 1 else []
