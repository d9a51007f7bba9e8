"""The growth report: what people open when a run has ended (or is still running)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import yaml

from growtx import formatting as fmt
from growtx.evaluate.maps import read_maps
from growtx.evaluate.results import read_evaluation
from growtx.growth.lineage import OWN_MIX, shares_seen
from growtx.report import growth_figures as figures
from growtx.report.evaluation import evaluation_sections
from growtx.report.maps import map_sections
from growtx.report.page import Page, Samples, Section, Table, Tile, render_page
from growtx.report.plot_style import save
from growtx.report.run_record import RunRecord, StageRecord, read_run
from growtx.report.sweep import sweep_sections
from growtx.store.run_records import RUN_FILE, read_changes, read_data_record
from growtx.store.trials import read_trials

# The numbers under the figures of a growth run, and its lineage.


def loss_table(run: RunRecord) -> Table:
    rows = []
    for stage in run.stages:
        _, losses = stage.series("train/loss")
        tokens = stage.end_tokens - run.stage_start_tokens(stage)
        first, last = (losses[0], figures.smooth(losses)[-1]) if losses else (None, None)
        start, end = stage.evaluated("loss", "start"), stage.evaluated("loss", "end")
        rows.append([stage.label, fmt.abbreviated(tokens), *map(fmt.decimal, (first, last, start, end))])
    return Table(["stage", "tokens", "training: first", "training: last", "held-out: start", "held-out: end"], rows)


def bits_per_byte_table(run: RunRecord) -> Table:
    names = figures.source_names(run.finished_stages)
    rows = []
    before: float | None = None
    for stage in run.finished_stages:
        start, end = stage.evaluated("bits_per_byte", "start"), stage.evaluated("bits_per_byte", "end")
        change = end - before if end is not None and before is not None else None
        by_source = [fmt.decimal(stage.bits_per_byte_by_source.get(name)) for name in names]
        rows.append(
            [stage.label, str(stage.num_blocks), fmt.decimal(start), fmt.decimal(end), fmt.signed(change), *by_source]
        )
        before = end if end is not None else before
    return Table(["stage", "blocks", "at start", "at end", "change since the previous stage", *names], rows)


def parameters_table(run: RunRecord) -> Table:
    budget = f"{run.budget:,}" if run.budget is not None else "none"
    rows = [
        [
            f"{manifest.index} · {manifest.name}",
            f"{manifest.active_parameters:,}",
            f"{manifest.total_parameters:,}",
            fmt.percent(manifest.active_parameters / manifest.total_parameters),
            budget,
        ]
        for manifest in run.manifests
    ]
    return Table(["stage", "active", "all", "share", "budget"], rows)


def speed_table(run: RunRecord) -> Table:
    rows = [
        [
            stage.label,
            fmt.abbreviated(figures.tokens_per_second(stage)),
            fmt.size(figures.peak_memory_bytes(stage)),
            fmt.duration(stage.metric("seconds")),
            stage.manifest.ended_by if stage.manifest else "not finished",
        ]
        for stage in run.stages
    ]
    return Table(["stage", "tokens/s", "peak memory", "time", "ended by"], rows, text_columns=(0, 4))


def lineage(run: RunRecord) -> Section:
    """Stage by stage: what it is, what it cost, and the hashes that identify it."""
    rows = []
    for stage in run.finished_stages:
        assert stage.manifest is not None
        check = stage.manifest.frozen_check
        same = check.before == check.after
        rows.append(
            [
                stage.label,
                str(stage.num_blocks),
                fmt.abbreviated(stage.active_parameters),
                fmt.abbreviated(stage.end_tokens),
                fmt.decimal(stage.evaluated("bits_per_byte", "end")),
                fmt.duration(stage.metric("seconds")),
                f"{check.num_tensors} unchanged" if same else "CHANGED",
                _trained(stage.metric("active_check")),
                fmt.short_hash(stage.manifest.blocks[-1].blob),
                fmt.short_hash(stage.manifest.head),
            ]
        )
    headers = ["stage", "blocks", "active", "tokens", "bits per byte", "time"]
    headers += ["frozen", "trained", "newest block", "head"]
    last = run.manifests[-1]
    return Section(
        "Lineage",
        "Every stage refers to the blocks below it by the hash of their content; none is ever rewritten.",
        table=Table(headers, rows, text_columns=(0, 6, 7, 8, 9)),
        note=f"Substrate {fmt.short_hash(last.substrate_fingerprint)}, tokenizer "
        f"{fmt.short_hash(last.tokenizer_fingerprint)}, data {fmt.short_hash(last.data_fingerprint)}.",
    )


def _trained(check: Any) -> str:
    """How many of the tensors that should train have moved; older runs did not count."""
    return f"{check['num_changed']} of {check['num_tensors']}" if isinstance(check, dict) else "-"


def data_section(run: RunRecord) -> Section | None:
    """How much of each source was read, and what of it is in no window; None where nothing says so."""
    record = read_data_record(run.storage)
    if record is None or not record.readings:
        return None
    rows = [
        [
            reading.name,
            fmt.percent(reading.share),
            f"{reading.num_parts_read} of {reading.num_parts}",
            f"{reading.num_documents:,}",
            f"{reading.num_held_out:,}",
            fmt.abbreviated(reading.num_tokens),
            fmt.size(reading.num_bytes),
            ", ".join(f"{count:,} {reason}" for reason, count in sorted(reading.dropped.items())) or "none",
        ]
        for reading in record.readings
    ]
    headers = ["source", "read", "parts", "documents", "held out", "tokens", "text", "dropped"]
    return Section(
        "Data",
        "Of large sources only what the plan needs is read. Held-out documents are measured on, never trained on.",
        table=Table(headers, rows, text_columns=(0, 7)),
    )


def seen_section(run: RunRecord) -> Section | None:
    """The share of each source in each stage; None where all stages had the same mix."""
    if not any(manifest.metrics.get(OWN_MIX) for manifest in run.manifests):
        return None
    shares = [shares_seen(manifest) for manifest in run.manifests]
    names = list(dict.fromkeys(name for seen in shares for name in seen))
    rows = [
        [f"{manifest.index} · {manifest.name}", *(fmt.percent(seen.get(name, 0.0)) for name in names)]
        for manifest, seen in zip(run.manifests, shares, strict=True)
    ]
    return Section(
        "What each stage saw",
        "Shares of the windows that a stage trained on. Held-out text is the same for all stages.",
        table=Table(["stage", *names], rows),
    )


REPORT_FILE = "report.html"


def write_report(run_dir: str) -> str:
    """Write `plots/*.png` and `report.html` into a run directory, finished or not; returns the page's address.

    Raises:
        StoreError: the directory is missing, holds no stage, or cannot be written.
    """
    run = read_run(run_dir)
    page = Page(
        title=f"growtx · {run.name}",
        headline=headline(run),
        alarm=". ".join(frozen_problems(run)),
        subtitle=run.storage.path(""),
        tiles=_tiles(run),
        sections=[*_figure_sections(run)],
        samples=_samples(run),
        closing_sections=[*_closing_sections(run)],
        missing=run.missing,
        command=_command(run),
        environment=_environment(run),
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
    )
    run.storage.write_text(REPORT_FILE, render_page(page))
    return run.storage.path(REPORT_FILE)


def headline(run: RunRecord) -> str:
    """One sentence in plain words: what grew, how far the held-out loss moved, what trained, what stayed frozen."""
    finished = run.finished_stages
    if not finished:
        return f"No stage has finished yet; {fmt.abbreviated(run.stages[-1].end_tokens)} tokens seen so far."
    last = run.manifests[-1]
    active, total = fmt.abbreviated(last.active_parameters), fmt.abbreviated(last.total_parameters)
    parts = [
        f"Grew {fmt.plural(last.num_blocks, 'block')} in {fmt.plural(len(finished), 'stage')}",
        f"held-out bits per byte {_bits_per_byte_words(finished)}",
        f"{active} of {total} parameters were active in the last stage",
        _frozen_words(run),
    ]
    record = read_data_record(run.storage)
    parts += [change.sentence() for change in record.changes] if record else []
    parts += [change.sentence() for change in read_changes(run.storage)]
    if unfinished := [stage for stage in run.stages if not stage.manifest]:
        parts.append(f"stage {unfinished[0].index} has not finished")
    return "; ".join(parts) + "."


def frozen_problems(run: RunRecord) -> list[str]:
    """One sentence for every stage whose frozen tensors do not hash to what they were before it."""
    moved = [manifest for manifest in run.manifests if manifest.frozen_check.before != manifest.frozen_check.after]
    return [f"Frozen tensors changed during stage {m.index} ({m.name}): its result must not be used" for m in moved]


def _bits_per_byte_words(finished: list[StageRecord]) -> str:
    values = [(stage.index, stage.evaluated("bits_per_byte", "end")) for stage in finished]
    known = [(index, value) for index, value in values if value is not None]
    if not known:
        return "were not measured"
    if len(known) == 1:
        start, end = finished[0].evaluated("bits_per_byte", "start"), known[0][1]
        return _moved(start, end) if start is not None else f"are {end:.2f}"
    words = _moved(known[0][1], known[-1][1], since=" after the first stage")
    rises = [str(index) for (_, before), (index, after) in itertools.pairwise(known) if after >= before]
    return f"{words} (no gain in stage {', '.join(rises)})" if rises else words


def _moved(before: float, after: float, since: str = "") -> str:
    if abs(after - before) < 0.005:
        return f"stayed at {after:.2f}"
    return f"{'fell' if after < before else 'rose'} from {before:.2f}{since} to {after:.2f}"


def _frozen_words(run: RunRecord) -> str:
    if frozen_problems(run):
        return "FROZEN TENSORS CHANGED"
    num_checked = sum(manifest.frozen_check.num_tensors for manifest in run.manifests)
    return f"no frozen tensor changed ({num_checked} {'hash' if num_checked == 1 else 'hashes'} checked)"


def _tiles(run: RunRecord) -> list[Tile]:
    last = (run.finished_stages or run.stages)[-1]
    seconds = [value for stage in run.stages if (value := stage.metric("seconds")) is not None]
    total = fmt.abbreviated(last.manifest.total_parameters if last.manifest else None)
    return [
        Tile(fmt.decimal(last.evaluated("bits_per_byte", "end")), "bits per byte, held out"),
        Tile(fmt.MISSING if last.num_blocks is None else str(last.num_blocks), "blocks"),
        Tile(fmt.abbreviated(last.active_parameters), f"active of {total} parameters"),
        Tile(fmt.abbreviated(run.stages[-1].end_tokens), "tokens"),
        Tile(fmt.duration(sum(seconds) if seconds else None), "spent in stages"),
        Tile(fmt.abbreviated(figures.tokens_per_second(last)), "tokens per second"),
    ]


def _figure_sections(run: RunRecord) -> Iterator[Section]:
    if any(stage.rows for stage in run.stages):
        yield Section(
            "Loss against tokens",
            "Training loss over the whole run. Each band is a stage: new blocks on top of a frozen prefix. "
            "Circles are held-out text, hollow when a stage starts, filled when it ends.",
            save(partial(figures.loss_against_tokens, run), run.storage, "loss_against_tokens"),
            loss_table(run),
            _above_axis_words(run),
        )
    if trials := read_trials(run.storage):
        yield from sweep_sections(trials, run.storage)
    if evaluation := read_evaluation(run.storage):
        yield from evaluation_sections(evaluation, run.storage)
    if not run.finished_stages:
        return
    yield Section(
        "Bits per byte against depth",
        "How well held-out text is compressed as the model grows; lower is better. Bits per byte do not depend on "
        "the tokenizer, so runs with different vocabularies can be compared.",
        save(partial(figures.bits_per_byte_against_depth, run), run.storage, "bits_per_byte_against_depth"),
        bits_per_byte_table(run),
    )
    yield Section(
        "Parameters against depth",
        "Only active parameters need gradients and optimizer state; the rest of the model is frozen and only read.",
        save(partial(figures.parameters_against_depth, run), run.storage, "parameters_against_depth"),
        parameters_table(run),
        "" if run.budget is not None else "The plan sets no budget for active parameters.",
    )
    yield Section(
        "Speed and memory",
        "Measured while training, without evaluation and start-up.",
        save(partial(figures.speed_and_memory, run), run.storage, "speed_and_memory"),
        speed_table(run),
    )


def _closing_sections(run: RunRecord) -> Iterator[Section]:
    if maps := read_maps(run.storage):
        yield from map_sections(maps, run.storage)
    if data := data_section(run):
        yield data
    if seen := seen_section(run):
        yield seen
    if run.manifests:
        yield lineage(run)


def _above_axis_words(run: RunRecord) -> str:
    _, losses = run.stages[0].series("train/loss")
    if not losses or losses[0] <= figures.loss_limits(run)[1]:
        return ""
    return f"The fall from the untrained model (loss {losses[0]:.2f}) begins above the axis."


def _samples(run: RunRecord) -> Samples:
    """Prompts and continuations by stage; a recorded text may or may not repeat its prompt."""
    return Samples(
        [
            (
                f"{manifest.index} · {manifest.name}",
                [(x["prompt"], x["text"].removeprefix(x["prompt"])) for x in samples],
            )
            for manifest in run.manifests
            if (samples := manifest.samples)
        ]
    )


def _command(run: RunRecord) -> str:
    return str(run.provenance.get("command") or f"growtx grow --preset {run.storage.path(RUN_FILE)}")


def _environment(run: RunRecord) -> list[tuple[str, str]]:
    """Commit, versions and machine, flat."""
    rows: list[tuple[str, str]] = []
    for key, value in run.provenance.items():
        if isinstance(value, Mapping):
            rows.extend((str(name), str(item)) for name, item in value.items())
        elif key != "command" and value is not None:
            rows.append((key.replace("_", " "), str(value)))
    return rows
