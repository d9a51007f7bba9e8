"""What a sweep found, as sections of a run's report: values against score, the best of each stage, what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from growtx.evaluate import formatting as fmt
from growtx.evaluate.page import Section, Table
from growtx.evaluate.plot_style import save
from growtx.evaluate.sweep_figures import Stages, by_stage, scored, values_against_score, ways_through_stages
from growtx.store.storage import Storage
from growtx.store.trials import TrialRecord, best_trial

DRAWN = ("learning_rate", "lora.rank", "global_batch_size", "init")  # the values that get a figure of their own


def sweep_sections(records: Sequence[TrialRecord], storage: Storage) -> Iterator[Section]:
    """The sections of a run directory that holds trials."""
    stages = {stage: trials for stage, trials in by_stage(records).items() if scored(trials)}
    if not stages:
        return
    yield Section(
        "Search: the best of each stage",
        "Each stage was searched on the best model of the stage before. The plan's own values were a trial like any "
        "other, so a gain is against them at equal tokens.",
        table=_best_table(stages),
        note="The winner was chosen on the held-out windows that it is reported on; that flatters it slightly.",
    )
    yield Section(
        "Search: trials on their way",
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
                "Every trial by this value; the others differ too. Stopped trials have the score of their last "
                "evaluation, which finishing would have lowered.",
                save(partial(values_against_score, stages, key), storage, f"search_{name}"),
                table=_value_table(stages, key),
            )
    yield Section(
        "Search: what it cost",
        "FLOPs of all trials' training steps, beside the same steps with every block in training: what the search "
        "would cost without a frozen prefix. Seconds are of optimizer steps, added over trials.",
        table=_cost_table(stages),
        note="Counted by growtx/models/counting.py; a cached prefix is not counted, it is computed once for all "
        "trials. The seconds without growing are the measured ones times the ratio of FLOPs: an estimate.",
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
    headers = ["stage", "trial", "bits per byte", "against the plan's", *keys, "finished / stopped / failed"]
    return Table(headers, rows)


def _trial_table(records: Sequence[TrialRecord]) -> Table:
    keys = _keys(records)
    rows = [
        [
            f"{record.stage} · {record.stage_name}",
            record.label + (" (planned)" if record.planned else ""),
            record.error or record.state,
            fmt.decimal(record.bits_per_byte, 4),
            fmt.count(record.num_tokens),
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
