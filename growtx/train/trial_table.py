"""The live table of a stage's trials: on a terminal it is redrawn, elsewhere a line tells when a trial ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from growtx.store.trials import TrialRecord, best_trial
from growtx.train.progress import StageProgress

Read = Callable[[], tuple[Mapping[int, StageProgress], list[str]]]


def show_value(value: Any) -> str:
    """A value of a trial in a cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "+".join(name.removesuffix("_proj") for name in value)
    return str(value)


class TrialTable:
    """Draws records and what is known of running trials.

    Args:
        records: by number; changed by others while this draws.
    """

    def __init__(self, title: str, num_trials: int, records: Mapping[int, TrialRecord]) -> None:
        self._title, self._num_trials, self._records = title, num_trials, records
        self._told = {number for number, record in records.items() if record.state != "running"}

    def show(self, read: Read, console: Console, stop: threading.Event) -> None:
        """Draw until `stop` is set."""
        if not console.is_terminal:
            while not stop.wait(0.5):
                self._tell(console, read()[1])
            self._tell(console, read()[1])
            return
        with Live(self.render({}), console=console, refresh_per_second=2) as live:
            while not stop.wait(0.5):
                progress, warnings = read()
                for warning in warnings:
                    console.print(f"warning: {warning}", highlight=False, markup=False)
                live.update(self.render(progress))
            live.update(self.render({}))

    def _tell(self, console: Console, warnings: list[str]) -> None:
        lines = [f"warning: {warning}" for warning in warnings]
        for number, record in sorted(self._records.items()):
            if record.state != "running" and number not in self._told:
                self._told.add(number)
                lines.append(f"{self._title}: {self._sentence(record)}")
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _sentence(self, record: TrialRecord) -> str:
        values = ", ".join(f"{key}={show_value(value)}" for key, value in record.values.items())
        ended = len(self._told)
        if record.state == "failed":
            return f"trial {record.label} failed ({ended}/{self._num_trials}; {values}): {record.error}"
        score = "-" if record.bits_per_byte is None else f"{record.bits_per_byte:.4f} bits/byte"
        return f"trial {record.label} {record.state} ({ended}/{self._num_trials}): {score}; {values}"

    def render(self, progress: Mapping[int, StageProgress]) -> Table:
        """All trials so far, the best one marked."""
        records = dict(self._records)
        best = best_trial(list(records.values()))
        ended = sum(record.state != "running" for record in records.values())
        table = Table(title=f"{self._title}: {ended} of {self._num_trials} trials ended", title_justify="left")
        keys = list(dict.fromkeys(key for record in records.values() for key in record.values))
        for column in ("trial", *keys, "state", "done", "bits/byte", "seconds"):
            table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
        for number, record in sorted(records.items()):
            at = progress.get(number, StageProgress())
            running = record.state == "running"
            fraction = at.fraction if running else (record.evaluations[-1].fraction if record.evaluations else 0.0)
            score = at.bits_per_byte if running else record.bits_per_byte
            table.add_row(
                record.label + (" planned" if record.planned else ""),
                *(show_value(record.values.get(key, "-")) for key in keys),
                record.state,
                f"{1.0 if record.state == 'finished' else fraction:.0%}",
                "-" if score is None else f"{score:.4f}",
                f"{record.total_seconds:.0f}",
                style="bold green" if best is not None and number == best.number else "",
            )
        return table
