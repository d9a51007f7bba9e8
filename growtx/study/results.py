"""What a study leaves: a record for every run, and a row for every variant over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

STUDY_FILE = "study.json"
# Two-sided 95 % points of Student's t by degrees of freedom; the normal's beyond.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageResult(_Record):
    """One finished stage of a run."""

    name: str
    num_blocks: int
    bits_per_byte: float
    bits_per_byte_start: float | None
    active_parameters: int
    total_parameters: int
    peak_memory_bytes: int
    seconds: float


class RunResult(_Record):
    """One run of a study, finished or not."""

    variant: str
    equal: str
    learning_rate: float
    seed: int
    directory: str
    flops: float
    num_tokens: int
    is_finished: bool
    failure: str = Field("", description="why it failed; a loss that is not finite, say")
    stages: tuple[StageResult, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all stages, without start-up."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def active_parameters(self) -> int:
        """Of the stage that trains most."""
        return max(stage.active_parameters for stage in self.stages)

    @property
    def peak_memory_bytes(self) -> int:
        return max(stage.peak_memory_bytes for stage in self.stages)

    @property
    def bits_per_byte(self) -> float:
        return self.stages[-1].bits_per_byte

    @property
    def spikes(self) -> list[float]:
        """At each later stage's start: bits per byte then, minus those at the end of the stage before."""
        return [
            after.bits_per_byte_start - before.bits_per_byte
            for before, after in zip(self.stages, self.stages[1:], strict=False)
            if after.bits_per_byte_start is not None
        ]


class StudyResults(_Record):
    """`study.json`."""

    name: str
    control: str
    equal: tuple[str, ...] = Field(description="comparisons; a variant without own runs in one is shown there too")
    first_seed: int
    command: str = ""
    runs: tuple[RunResult, ...]


class VariantSummary(_Record):
    """A variant at its best learning rate, over seeds."""

    variant: str
    equal: str
    learning_rate: float
    rates_tried: dict[float, float | None] = Field(description="bits per byte on the first seed; None: failed")
    runs: tuple[RunResult, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(run.bits_per_byte for run in self.runs)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        return statistics.stdev(run.bits_per_byte for run in self.runs) if len(self.runs) > 1 else None

    @property
    def spikes(self) -> list[float]:
        """Mean over seeds for each later stage."""
        return [statistics.fmean(values) for values in zip(*(run.spikes for run in self.runs), strict=True)]

    @property
    def is_at_edge(self) -> bool:
        """Whether the best learning rate is the lowest or highest that was tried, of several."""
        return len(self.rates_tried) > 1 and self.learning_rate in (min(self.rates_tried), max(self.rates_tried))


class Difference(_Record):
    """A variant minus the control on the same seeds, with its 95 % interval where there are several."""

    value: float
    half_width: float | None

    @property
    def is_sure(self) -> bool:
        return self.half_width is not None and abs(self.value) > self.half_width


def best_rate(runs: Sequence[RunResult], first_seed: int) -> float | None:
    """The learning rate with the lowest bits per byte on the first seed; None while none has finished."""
    tried = [run for run in runs if run.seed == first_seed and run.is_finished]
    return min(tried, key=lambda run: run.bits_per_byte).learning_rate if tried else None


def variant_summaries(results: StudyResults) -> list[VariantSummary]:
    """A row for every comparison and variant with a finished run, best first within a comparison."""
    found: list[VariantSummary] = []
    for equal, variant in dict.fromkeys((run.equal, run.variant) for run in results.runs):
        runs = [run for run in results.runs if (run.equal, run.variant) == (equal, variant)]
        rate = best_rate(runs, results.first_seed)
        if rate is None:
            continue
        tried = {
            run.learning_rate: run.bits_per_byte if run.is_finished else None
            for run in runs
            if run.seed == results.first_seed
        }
        kept = tuple(run for run in runs if run.learning_rate == rate and run.is_finished)
        found.append(VariantSummary(variant=variant, equal=equal, learning_rate=rate, rates_tried=tried, runs=kept))
    return sorted(found, key=lambda row: (row.equal, row.mean))


def against(row: VariantSummary, control: VariantSummary) -> Difference:
    """The paired difference over the seeds that both have."""
    of_control = {run.seed: run.bits_per_byte for run in control.runs}
    pairs = [run.bits_per_byte - of_control[run.seed] for run in row.runs if run.seed in of_control]
    half_width = None
    if len(pairs) > 1:
        t = _T_95[len(pairs) - 2] if len(pairs) - 2 < len(_T_95) else 1.96
        half_width = t * statistics.stdev(pairs) / len(pairs) ** 0.5
    return Difference(value=statistics.fmean(pairs), half_width=half_width)
