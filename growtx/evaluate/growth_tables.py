"""The numbers under the figures of a growth run, and its lineage."""

from __future__ import annotations

from growtx.evaluate import formatting as fmt
from growtx.evaluate import growth_figures as figures
from growtx.evaluate.page import Section, Table
from growtx.evaluate.run_record import RunRecord


def loss(run: RunRecord) -> Table:
    rows = []
    for stage in run.stages:
        _, losses = stage.series("train/loss")
        tokens = stage.end_tokens - run.stage_start_tokens(stage)
        first, last = (losses[0], figures.smooth(losses)[-1]) if losses else (None, None)
        start, end = stage.evaluated("loss", "start"), stage.evaluated("loss", "end")
        rows.append([stage.label, fmt.count(tokens), *map(fmt.decimal, (first, last, start, end))])
    return Table(["stage", "tokens", "training: first", "training: last", "held-out: start", "held-out: end"], rows)


def bits_per_byte(run: RunRecord) -> Table:
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
    return Table(["stage", "blocks", "at start", "at end", "against the stage before", *names], rows)


def parameters(run: RunRecord) -> Table:
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


def speed(run: RunRecord) -> Table:
    rows = [
        [
            stage.label,
            fmt.count(figures.tokens_per_second(stage)),
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
                fmt.count(stage.active_parameters),
                fmt.count(stage.end_tokens),
                fmt.decimal(stage.evaluated("bits_per_byte", "end")),
                fmt.duration(stage.metric("seconds")),
                f"{check.num_tensors} same" if same else "CHANGED",
                fmt.short_hash(stage.manifest.blocks[-1].blob),
                fmt.short_hash(stage.manifest.head),
            ]
        )
    headers = ["stage", "blocks", "active", "tokens", "bits per byte", "time", "frozen", "newest block", "head"]
    last = run.manifests[-1]
    return Section(
        "Lineage",
        "Every stage refers to the blocks below it by the hash of their content; none is ever rewritten.",
        table=Table(headers, rows, text_columns=(0, 6, 7, 8)),
        note=f"Substrate {fmt.short_hash(last.substrate_fingerprint)}, tokenizer "
        f"{fmt.short_hash(last.tokenizer_fingerprint)}, data {fmt.short_hash(last.data_fingerprint)}.",
    )
