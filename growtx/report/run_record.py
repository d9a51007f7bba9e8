"""A run directory as one object: what its configuration, its metrics and its manifests say.

Reading is tolerant (a run may be unfinished or stopped) but never silent: whatever a reader would expect but is
missing is listed in `RunRecord.missing`, and the report prints that list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from growtx.config import parse_yaml
from growtx.exceptions import ConfigError, StoreError
from growtx.redaction import redact_tree
from growtx.storage import Storage
from growtx.store.manifest import Manifest, list_manifests, read_manifest
from growtx.store.run_records import RUN_FILE
from growtx.store.runs import METRICS_FILE, has_metrics, read_metrics

Json = dict[str, Any]


@dataclass(frozen=True)
class StageRecord:
    """One stage: its manifest (None while it is unfinished) and its rows of `metrics.jsonl`, in step order."""

    index: int
    manifest: Manifest | None
    rows: list[Json]

    @property
    def name(self) -> str:
        return self.manifest.name if self.manifest else str(self._last("stage_name") or f"stage {self.index}")

    @property
    def label(self) -> str:
        """`1 · depth-1`, the same in every figure and table."""
        return f"{self.index} · {self.name}"

    @property
    def num_blocks(self) -> int | None:
        return self.manifest.num_blocks if self.manifest else as_int(self._last("num_blocks"))

    @property
    def active_parameters(self) -> int | None:
        return self.manifest.active_parameters if self.manifest else as_int(self._last("active_parameters"))

    @property
    def end_tokens(self) -> int:
        """Tokens that the run had seen when the stage ended, or when it last wrote a row."""
        return self.manifest.num_tokens if self.manifest else as_int(self._last("num_tokens")) or 0

    @property
    def has_lora(self) -> bool:
        return self.manifest is not None and bool(self.manifest.stage.get("lora"))

    @property
    def bits_per_byte_by_source(self) -> dict[str, float]:
        values = self.metric("eval/bits_per_byte_by_source")
        return dict(values) if isinstance(values, Mapping) else {}

    def metric(self, name: str) -> Any:
        """An entry of the manifest's metrics; None where it is absent."""
        return self.manifest.metrics.get(name) if self.manifest else None

    def evaluated(self, name: str, when: str) -> float | None:
        """Held-out `eval/NAME` at the `start` or `end` of the stage, from the metrics or else from the manifest."""
        for row in reversed(self.rows):
            if row.get("eval/when") == when and as_float(row.get(f"eval/{name}")) is not None:
                return as_float(row[f"eval/{name}"])
        return as_float(self.metric(f"eval/{name}" if when == "end" else f"eval/{name}_{when}"))

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Tokens at which a metric was taken and its finite values, in step order."""
        pairs = ((as_float(row.get("num_tokens")), as_float(row.get(name))) for row in self.rows)
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        return [x for x, _ in points], [y for _, y in points]

    def _last(self, name: str) -> Any:
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)


@dataclass(frozen=True)
class RunRecord:
    """Everything a report needs of a run directory."""

    storage: Storage
    run: Json
    stages: list[StageRecord]
    missing: list[str] = field(default_factory=list)

    @property
    def config(self) -> Json:
        """The resolved configuration, without the record of how it was run."""
        return {key: value for key, value in self.run.items() if key != "provenance"}

    @property
    def provenance(self) -> Json:
        """Command, commit and versions that made the run."""
        found = self.run.get("provenance")
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.storage.root.rsplit("/", 1)[-1])

    @property
    def finished_stages(self) -> list[StageRecord]:
        return [stage for stage in self.stages if stage.manifest]

    @property
    def manifests(self) -> list[Manifest]:
        return [stage.manifest for stage in self.stages if stage.manifest]

    @property
    def budget(self) -> int | None:
        """The active-parameter budget of the plan, where one is set."""
        plan = self.config.get("plan")
        budget = plan.get("budget") if isinstance(plan, Mapping) else None
        return as_int(budget.get("active_parameters")) if isinstance(budget, Mapping) else None

    def stage_start_tokens(self, stage: StageRecord) -> int:
        """Where a stage begins on the token axis: the end of the one before it."""
        position = self.stages.index(stage)
        return self.stages[position - 1].end_tokens if position else 0


def read_run(run_dir: str) -> RunRecord:
    """Read a run directory on any file system.

    Raises:
        StoreError: the directory is missing, holds no stage at all, or a manifest is damaged.
    """
    storage = Storage(run_dir)
    if not storage.exists():
        raise StoreError(f"{run_dir}: there is no such run directory", "Check the path, or make it with growtx grow")
    missing: list[str] = []
    rows = _rows_by_stage(storage, missing)
    manifests = {manifest.index: manifest for manifest in _manifests(storage)}
    indices = sorted({*manifests, *rows})
    if not indices:
        raise StoreError(f"{run_dir} holds neither manifests nor metrics", "Give the --run-dir of a growth run")
    stages = [StageRecord(index, manifests.get(index), rows.get(index, [])) for index in indices]
    run = _read_run_yaml(storage, missing)
    missing.extend(_missing_in_stages(stages))
    return RunRecord(storage, run, stages, missing)


def as_float(value: Any) -> float | None:
    """A finite float, else None (NaN, strings and absent values are not plotted)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def as_int(value: Any) -> int | None:
    number = as_float(value)
    return None if number is None else round(number)


def _read_run_yaml(storage: Storage, missing: list[str]) -> Json:
    if not storage.exists(RUN_FILE):
        missing.append(f"{RUN_FILE}: neither the configuration nor the versions of this run are known")
        return {}
    try:
        tree = parse_yaml(storage.read_text(RUN_FILE), RUN_FILE)
    except (ConfigError, StoreError) as error:
        missing.append(f"{RUN_FILE}: {error.problem}")
        return {}
    return redact_tree(tree) if isinstance(tree, dict) else {}  # older versions recorded credentials


def _rows_by_stage(storage: Storage, missing: list[str]) -> dict[int, list[Json]]:
    if not has_metrics(storage):
        missing.append(f"{METRICS_FILE}: the loss within the stages is not known")
    rows: dict[int, list[Json]] = {}
    for row in read_metrics(storage):
        rows.setdefault(int(row["stage"]), []).append(row)
    return rows


def _manifests(storage: Storage) -> Iterator[Manifest]:
    return (read_manifest(storage, name) for name in list_manifests(storage))


def _missing_in_stages(stages: list[StageRecord]) -> Iterator[str]:
    """What finished stages should record and do not, one line per kind of thing."""
    checks: dict[str, Callable[[StageRecord], bool]] = {
        "held-out bits per byte": lambda stage: stage.evaluated("bits_per_byte", "end") is not None,
        "text samples": lambda stage: stage.manifest is not None and bool(stage.manifest.samples),
        "time in seconds": lambda stage: stage.metric("seconds") is not None,
    }
    for what, present in checks.items():
        absent = [str(stage.index) for stage in stages if stage.manifest and not present(stage)]
        if absent:
            yield f"{what} of stage {', '.join(absent)}"
