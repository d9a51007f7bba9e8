"""What a study says: sentences, tables for the terminal, and a self-contained page."""

from __future__ import annotations

import statistics
from functools import partial

import yaml
from rich.table import Table as TerminalTable

from growtx.evaluate import formatting as fmt
from growtx.evaluate import study_figures as figures
from growtx.evaluate.comparison import comparison_section
from growtx.evaluate.page import Page, Section, Table, render
from growtx.evaluate.plot_style import save
from growtx.evaluate.report import REPORT_FILE
from growtx.evaluate.results import Evaluation, read_evaluation
from growtx.evaluate.study_results import Difference, Row, StudyResults, against, rows
from growtx.store.runs import RUN_FILE
from growtx.store.storage import Storage

_MEASURES = {"tokens": "equal tokens", "flops": "equal FLOPs"}
_HEADERS = (
    "variant", "bits per byte", "against control", "learning rate", "seeds", "spikes", "active", "all",
    "tokens", "FLOPs", "peak memory", "time",
)  # fmt: skip
_NOTE = (
    "Mean ± standard deviation over seeds of held-out bits per byte after the last stage. Against control: mean of the "
    "differences on the same seeds, ± its 95 % interval (Student's t), where there are several seeds. Learning rate: "
    "the best of those tried on the first seed, which serves the others; * means the lowest or the highest tried, so "
    "a still better one may lie outside. Spikes: bits per byte at the start of each later stage minus those at the end "
    "of the one before. Active: parameters that receive gradients, in the stage with most. FLOPs: products computed by "
    "training, the forward pass of the frozen prefix in every step included. Peak memory: of a worker's whole process "
    "(on CPU with the libraries). Time: inside stages, without start-up, several runs side by side."
)


def comparisons(results: StudyResults) -> dict[str, list[Row]]:
    """Rows by what is spent alike, best first."""
    found = {(row.equal, row.variant): row for row in rows(results)}
    variants = list(dict.fromkeys(run.variant for run in results.runs))
    together: dict[str, list[Row]] = {}
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
        words.append(f"{fmt.plural(missing, 'run')} of {len(results.runs)} not finished; --resume goes on.")
    return words


def _verdict(measure: str, found: list[Row], control_name: str) -> str:
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
    ahead = f" Surely better than the control: {', '.join(surely)}." if surely else ""
    words = _difference_words(against(best, control), control)
    return f"{start}, {words} ({control.variant}: {_mean(control)}).{ahead}"


def _difference_words(gap: Difference, control: Row) -> str:
    direction = "below" if gap.value < 0 else "above"
    size = f"{abs(gap.value):.3f} ({fmt.percent(abs(gap.value) / control.mean)}) {direction} the control"
    if gap.half_width is None:
        return f"{size} on one seed, so without an interval"
    return f"{size}, 95 % interval ± {gap.half_width:.3f}{'' if gap.is_sure else ', which includes no difference'}"


def _mean(row: Row) -> str:
    return fmt.decimal(row.mean) + ("" if row.deviation is None else f" ± {fmt.decimal(row.deviation)}")


def _table(found: list[Row], results: StudyResults) -> Table:
    control = next((row for row in found if row.variant == results.control), None)
    return Table(_HEADERS, [_cells(row, control) for row in found])


def _cells(row: Row, control: Row | None) -> list[str]:
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
        fmt.count(row.runs[0].active_parameters),
        fmt.count(row.runs[0].stages[-1].total_parameters),
        fmt.count(row.runs[0].num_tokens),
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
    run = yaml.safe_load(study.read_text(RUN_FILE))
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
    study.write_text(REPORT_FILE, render(page))
    return study.path(REPORT_FILE)


def _sections(measure: str, results: StudyResults, study: Storage) -> list[Section]:
    found = comparisons(results)[measure]
    title = _MEASURES[measure]
    return [
        Section(
            f"Bits per byte at {title}",
            "Lower is better. Points are seeds, bars their mean; the dotted line is the control.",
            save(partial(figures.bits_per_byte, found, results.control), study, f"bits_per_byte_{measure}"),
            _table(found, results),
            _NOTE,
            folded=[("Every run", _run_table(measure, results))],
        ),
        Section(
            f"Stage by stage at {title}",
            "Held-out bits per byte: hollow at the start of a stage (its new blocks are untrained, hence the spike), "
            "filled at its end. First seed; stages are drawn equally long. The untrained model begins above the axis "
            "(see the table), and so does a spike with an arrow.",
            save(partial(figures.stages, found), study, f"stages_{measure}"),
            _stage_table(found),
        ),
        Section(
            f"What it takes at {title}",
            "Parameters that receive gradients, memory of a worker, and time inside the stages.",
            save(partial(figures.costs, found), study, f"costs_{measure}"),
            _cost_table(found),
        ),
    ]


def _stage_table(found: list[Row]) -> Table:
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


def _cost_table(found: list[Row]) -> Table:
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
    for row in rows(results):
        evaluation = read_evaluation(study.child(row.runs[0].directory))
        if evaluation is not None:
            evaluations[f"{row.variant}, {_MEASURES[row.equal]}"] = evaluation
    return [comparison_section(evaluations, study)] if len(evaluations) > 1 else []
