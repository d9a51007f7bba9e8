"""The growth report: what a person opens when a run has ended (or while it goes on)."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from growtx.evaluate import formatting as fmt
from growtx.evaluate import growth_figures as figures
from growtx.evaluate.page import Page, Samples, Section, Table, Tile, write_page
from growtx.evaluate.plot_style import save
from growtx.evaluate.run_record import RunRecord, StageRecord, read_run


def write_report(run_dir: str) -> Path:
    """Write `plots/*.png` and `report.html` into a run directory, finished or not, and return the page's path.

    Raises:
        StoreError: the directory is missing or holds no stage.
    """
    run = read_run(run_dir)
    problems = frozen_problems(run)
    page = Page(
        title=f"growtx · {run.name}",
        headline=headline(run),
        alarm=". ".join(problems),
        subtitle=_subtitle(run),
        tiles=_tiles(run),
        sections=[*_figure_sections(run)],
        samples=Samples([(s.label, [_sample(x) for x in s.samples]) for s in run.finished_stages if s.samples]),
        closing_sections=[_lineage(run)] if run.finished_stages else [],
        missing=run.missing,
        command=_command(run),
        environment=_environment(run),
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
    )
    return write_page(page, run.path / "report.html")


def headline(run: RunRecord) -> str:
    """One sentence in plain words: what grew, how far the held-out loss moved, what trained, what stayed frozen."""
    finished = run.finished_stages
    if not finished:
        return f"No stage has finished yet; {fmt.count(run.stages[-1].end_tokens)} tokens seen so far."
    last = finished[-1]
    depth = fmt.plural(last.num_blocks, "block") if last.num_blocks is not None else "an unknown number of blocks"
    parts = [f"Grew {depth} in {fmt.plural(len(finished), 'stage')}", _bits_per_byte_words(finished)]
    if last.active_parameters is not None and last.total_parameters is not None:
        active, total = fmt.count(last.active_parameters), fmt.count(last.total_parameters)
        parts.append(f"{active} of {total} parameters were active in the last stage")
    parts.append(_frozen_words(run))
    if unfinished := [stage for stage in run.stages if not stage.finished]:
        parts.append(f"stage {unfinished[0].index} has not finished")
    return "; ".join(part for part in parts if part) + "."


def frozen_problems(run: RunRecord) -> list[str]:
    """One sentence for every stage whose frozen tensors do not hash to what they were before it."""
    moved = [stage for stage in run.finished_stages if _check(stage) and not _held(stage)]
    return [f"Frozen tensors changed during stage {stage.label}: its result must not be used" for stage in moved]


def _bits_per_byte_words(finished: list[StageRecord]) -> str:
    values = [(stage, stage.evaluated("bits_per_byte", "end")) for stage in finished]
    known = [(stage, value) for stage, value in values if value is not None]
    if not known:
        return "held-out bits per byte were not measured"
    if len(known) == 1:
        start, end = known[0][0].evaluated("bits_per_byte", "start"), known[0][1]
        return f"held-out bits per byte {_moved(start, end)}" if start else f"held-out bits per byte are {end:.2f}"
    rises = [after[0].index for before, after in itertools.pairwise(known) if after[1] >= before[1]]
    words = f"held-out bits per byte {_moved(known[0][1], known[-1][1], ' after the first stage')}"
    if rises and len(rises) < len(known) - 1:
        words += f" (no gain in stage {', '.join(map(str, rises))})"
    return words


def _moved(before: float, after: float, since: str = "") -> str:
    if abs(after - before) < 0.005:
        return f"stayed at {after:.2f}"
    return f"{'fell' if after < before else 'rose'} from {before:.2f}{since} to {after:.2f}"


def _frozen_words(run: RunRecord) -> str:
    if frozen_problems(run):
        return "FROZEN TENSORS MOVED"
    num_checked = sum(int(_check(stage).get("num_tensors") or 0) for stage in run.finished_stages)
    if not num_checked:
        return "whether frozen tensors moved was not checked"
    return f"nothing frozen moved ({fmt.plural(num_checked, 'hash').replace('hashs', 'hashes')} checked)"


def _check(stage: StageRecord) -> Mapping[str, Any]:
    check = stage.manifest.get("frozen_check")
    return check if isinstance(check, Mapping) else {}


def _held(stage: StageRecord) -> bool:
    return bool(_check(stage).get("before") == _check(stage).get("after"))


def _subtitle(run: RunRecord) -> str:
    started = run.run.get("started") or run.run.get("created") or ""
    return " · ".join(part for part in (str(run.path.resolve()), str(started)) if part)


def _tiles(run: RunRecord) -> list[Tile]:
    last = (run.finished_stages or run.stages)[-1]
    seconds = [value for stage in run.stages if (value := stage.metric("seconds")) is not None]
    final = last.evaluated("bits_per_byte", "end")
    return [
        Tile(fmt.decimal(final), "bits per byte, held out"),
        Tile("?" if last.num_blocks is None else str(last.num_blocks), "blocks"),
        Tile(fmt.count(last.active_parameters), f"active of {fmt.count(last.total_parameters)} parameters"),
        Tile(fmt.count(run.stages[-1].end_tokens), "tokens"),
        Tile(fmt.duration(sum(seconds) if seconds else None), "in stages"),
        Tile(fmt.count(figures.tokens_per_second(last)), "tokens a second"),
    ]


def _figure_sections(run: RunRecord) -> Iterator[Section]:
    plots = run.path / "plots"
    if any(stage.rows for stage in run.stages):
        yield Section(
            "Loss against tokens",
            "Training loss over the whole run. Each band is a stage: new blocks on top of a frozen prefix. "
            "Circles are held-out text, hollow when a stage starts, filled when it ends.",
            save(lambda theme: figures.loss_against_tokens(run, theme), plots / "loss_against_tokens.png"),
            _loss_table(run),
            _above_axis_words(run),
        )
    if not run.finished_stages:
        return
    yield Section(
        "Bits per byte against depth",
        "How well held-out text is compressed as the model grows; lower is better. Bits per byte do not depend on "
        "the tokenizer, so runs with different vocabularies compare.",
        save(lambda theme: figures.bits_per_byte_against_depth(run, theme), plots / "bits_per_byte_against_depth.png"),
        _bits_per_byte_table(run),
    )
    yield Section(
        "Parameters against depth",
        "Only active parameters need gradients and optimizer state; the rest of the model is frozen and only read.",
        save(lambda theme: figures.parameters_against_depth(run, theme), plots / "parameters_against_depth.png"),
        _parameter_table(run),
        "" if run.budget is not None else "The plan sets no budget for active parameters.",
    )
    yield Section(
        "Speed and memory",
        "",
        save(lambda theme: figures.speed_and_memory(run, theme), plots / "speed_and_memory.png"),
        _speed_table(run),
    )


def _above_axis_words(run: RunRecord) -> str:
    _, losses = run.stages[0].series("train/loss")
    if not losses or losses[0] <= figures.loss_limits(run)[1]:
        return ""
    return f"The fall from the untrained model (loss {losses[0]:.2f}) begins above the axis."


def _loss_table(run: RunRecord) -> Table:
    rows = []
    for stage in run.stages:
        _, losses = stage.series("train/loss")
        tokens = (stage.end_tokens or 0) - run.stage_start_tokens(stage)
        smoothed = figures.smooth(losses)
        first, last = (losses[0], smoothed[-1]) if losses else (None, None)
        start, end = stage.evaluated("loss", "start"), stage.evaluated("loss", "end")
        rows.append([stage.label, fmt.count(tokens), *map(fmt.decimal, (first, last, start, end))])
    return Table(["stage", "tokens", "training: first", "training: last", "held-out: start", "held-out: end"], rows)


def _bits_per_byte_table(run: RunRecord) -> Table:
    stages = run.finished_stages
    names = sorted({name for stage in stages for name in stage.bits_per_byte_by_source})
    names = names if len(names) > 1 else []
    rows = []
    before: float | None = None
    for stage in stages:
        start, end = stage.evaluated("bits_per_byte", "start"), stage.evaluated("bits_per_byte", "end")
        change = end - before if end is not None and before is not None else None
        by_source = [fmt.decimal(stage.bits_per_byte_by_source.get(name)) for name in names]
        depth = fmt.MISSING if stage.num_blocks is None else str(stage.num_blocks)
        rows.append([stage.label, depth, fmt.decimal(start), fmt.decimal(end), fmt.signed(change), *by_source])
        before = end if end is not None else before
    return Table(["stage", "blocks", "at start", "at end", "against the stage before", *names], rows)


def _parameter_table(run: RunRecord) -> Table:
    rows = []
    for stage in run.finished_stages:
        active, total = stage.active_parameters, stage.total_parameters
        share = active / total if active is not None and total else None
        exact = [f"{value:,}" if value is not None else fmt.MISSING for value in (active, total)]
        rows.append([stage.label, *exact, fmt.percent(share), f"{run.budget:,}" if run.budget else "none"])
    return Table(["stage", "active", "all", "share", "budget"], rows)


def _speed_table(run: RunRecord) -> Table:
    rows = [
        [
            stage.label,
            fmt.count(figures.tokens_per_second(stage)),
            fmt.size(figures.peak_memory_bytes(stage)),
            fmt.duration(stage.metric("seconds")),
            str(stage.metric("ended_by") or fmt.MISSING) if stage.finished else "not finished",
        ]
        for stage in run.stages
    ]
    return Table(["stage", "tokens/s", "peak memory", "time", "ended by"], rows, text_columns=(0, 4))


def _lineage(run: RunRecord) -> Section:
    rows = []
    for stage in run.finished_stages:
        check = _check(stage)
        frozen = "not checked" if not check else f"{check.get('num_tensors', '?')} same" if _held(stage) else "CHANGED"
        rows.append(
            [
                stage.label,
                fmt.MISSING if stage.num_blocks is None else str(stage.num_blocks),
                fmt.count(stage.active_parameters),
                fmt.count(stage.end_tokens),
                fmt.decimal(stage.evaluated("bits_per_byte", "end")),
                fmt.duration(stage.metric("seconds")),
                frozen,
                _newest_block(stage),
            ]
        )
    headers = ["stage", "blocks", "active", "tokens", "bits per byte", "time", "frozen hashes", "newest block"]
    return Section(
        "Lineage",
        "Every stage refers to the blocks below it by the hash of their content; none is ever rewritten.",
        table=Table(headers, rows, text_columns=(0, 6, 7)),
        note=_fingerprint_words(run.finished_stages[-1].manifest),
    )


def _newest_block(stage: StageRecord) -> str:
    blocks = (stage.manifest.get("blobs") or {}).get("blocks") or []
    if not blocks:
        return fmt.MISSING
    newest = blocks[-1]
    return fmt.short_hash(newest.get("blob") if isinstance(newest, Mapping) else str(newest))


def _fingerprint_words(manifest: Mapping[str, Any]) -> str:
    names = {"tokenizer": "tokenizer", "substrate": "substrate", "data": "data"}
    found = []
    for key, word in names.items():
        value = manifest.get(f"{key}_fingerprint") or manifest.get(key)
        if isinstance(value, Mapping):
            value = value.get("fingerprint")
        if isinstance(value, str):
            found.append(f"{word} {fmt.short_hash(value)}")
    return "Fingerprints: " + ", ".join(found) + "." if found else ""


def _sample(sample: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and continuation; the continuation may or may not repeat the prompt."""
    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
    return prompt, text.removeprefix(prompt)


def _command(run: RunRecord) -> str:
    command = run.run.get("command")
    if isinstance(command, list):
        return shlex.join(map(str, command))
    return str(command) if command else f"python rayjobs/grow.py --preset {run.path / 'run.yaml'}"


def _environment(run: RunRecord) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key in ("git_commit", "versions", "environment", "machine", "resources"):
        value = run.run.get(key)
        if isinstance(value, Mapping):
            rows.extend((str(name), str(item)) for name, item in value.items())
        elif value is not None:
            rows.append((key.replace("_", " "), str(value)))
    return rows
