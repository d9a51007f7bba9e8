"""A run directory as one object: what its configuration, its metrics and its manifests say.

Reading is tolerant (a run may be unfinished, stopped, or written by an older version) but never silent: whatever a
reader would look for and is not there is listed in `RunRecord.missing`, and the report prints that list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from growtx.exceptions import StoreError

Json = dict[str, Any]


@dataclass(frozen=True)
class StageRecord:
    """One stage: its manifest (empty while it is unfinished) and its rows of `metrics.jsonl`, in step order."""

    index: int
    manifest: Json
    rows: list[Json]

    @property
    def finished(self) -> bool:
        return bool(self.manifest)

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self._last("stage_name") or f"stage {self.index}")

    @property
    def label(self) -> str:
        """`1 · grow-1`, the same in every figure and table."""
        return f"{self.index} · {self.name}"

    @property
    def num_blocks(self) -> int | None:
        return as_int(self.manifest.get("num_blocks", self._last("num_blocks")))

    @property
    def active_parameters(self) -> int | None:
        return as_int(self.manifest.get("active_parameters", self._last("active_parameters")))

    @property
    def total_parameters(self) -> int | None:
        return as_int(self.manifest.get("total_parameters"))

    @property
    def end_tokens(self) -> int | None:
        """Tokens seen by the run when the stage ended."""
        return as_int(self._last("num_tokens") or self.manifest.get("num_tokens"))

    @property
    def has_lora(self) -> bool:
        return bool((self.manifest.get("stage") or {}).get("lora"))

    @property
    def samples(self) -> list[Json]:
        return [sample for sample in self.manifest.get("samples") or [] if isinstance(sample, dict)]

    @property
    def bits_per_byte_by_source(self) -> dict[str, float]:
        values = self.metric("eval/bits_per_byte_by_source")
        return dict(values) if isinstance(values, Mapping) else {}

    def metric(self, name: str) -> Any:
        """An entry of the manifest's metrics; None where it is absent."""
        return (self.manifest.get("metrics") or {}).get(name)

    def evaluated(self, name: str, when: str) -> float | None:
        """Held-out `eval/NAME` at the `start` or `end` of the stage, from the metrics or else from the manifest."""
        for row in reversed(self.rows):
            if row.get("eval/when") == when and as_float(row.get(f"eval/{name}")) is not None:
                return as_float(row[f"eval/{name}"])
        return as_float(self.metric(f"eval/{name}" if when == "end" else f"eval/{name}_{when}"))

    def series(self, name: str, against: str = "num_tokens") -> tuple[list[float], list[float]]:
        """Finite values of a metric and where they were taken, in step order."""
        pairs = ((as_float(row.get(against)), as_float(row.get(name))) for row in self.rows)
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        return [x for x, _ in points], [y for _, y in points]

    def _last(self, name: str) -> Any:
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)


@dataclass(frozen=True)
class RunRecord:
    """Everything a report needs of a run directory."""

    path: Path
    run: Json
    stages: list[StageRecord]
    evaluation: Json
    missing: list[str] = field(default_factory=list)

    @property
    def config(self) -> Json:
        config = self.run.get("config", self.run)
        return config if isinstance(config, dict) else {}

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def finished_stages(self) -> list[StageRecord]:
        return [stage for stage in self.stages if stage.finished]

    @property
    def budget(self) -> int | None:
        """The active-parameter budget of the plan, where one is set."""
        budget = next(_values_of(self.config, "budget"), None)
        return as_int(budget.get("active_parameters") if isinstance(budget, Mapping) else budget)

    def stage_start_tokens(self, stage: StageRecord) -> float:
        """Where a stage begins on the token axis: the end of the one before it."""
        position = self.stages.index(stage)
        return float(self.stages[position - 1].end_tokens or 0) if position else 0.0


def read_run(run_dir: str | Path) -> RunRecord:
    """Read a run directory.

    Raises:
        StoreError: the directory is missing, holds no stage at all, or a manifest is not JSON.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise StoreError(f"run directory {path} does not exist", "Check the path, or make it with rayjobs/grow.py")
    missing: list[str] = []
    rows = _read_metrics(path / "metrics.jsonl", missing)
    manifests = _read_manifests(path / "manifests")
    indices = sorted({*manifests, *(int(row["stage"]) for row in rows)})
    if not indices:
        raise StoreError(f"{path} holds neither manifests nor metrics", "Give the --run-dir of a growth run")
    stages = [
        StageRecord(index, manifests.get(index, {}), [row for row in rows if row["stage"] == index])
        for index in indices
    ]
    run = _read_run_yaml(path / "run.yaml", missing)
    missing.extend(_missing_in_stages(stages))
    return RunRecord(path, run, stages, _read_json(path / "evaluation.json") or {}, missing)


def as_float(value: Any) -> float | None:
    """A finite float, else None (NaN, strings and absent values are not plotted)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def as_int(value: Any) -> int | None:
    number = as_float(value)
    return None if number is None else round(number)


def _read_run_yaml(path: Path, missing: list[str]) -> Json:
    if not path.is_file():
        missing.append("run.yaml: neither the configuration nor the versions of this run are known")
        return {}
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree if isinstance(tree, dict) else {}


def _read_metrics(path: Path, missing: list[str]) -> list[Json]:
    """Rows in step order. A step that was repeated after a resume counts once, as it was done last."""
    if not path.is_file():
        missing.append("metrics.jsonl: the loss within the stages is not known")
        return []
    rows: dict[tuple[int, int, str], Json] = {}
    num_unreadable = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            rows[int(row["stage"]), int(row["step"]), str(row.get("eval/when"))] = row
        except (ValueError, KeyError, TypeError):
            num_unreadable += bool(line.strip())
    if num_unreadable:
        missing.append(f"{num_unreadable} line(s) of metrics.jsonl cannot be read and are left out")
    return [row for _, row in sorted(rows.items(), key=lambda item: (*item[0][:2], item[1].get("num_tokens") or 0))]


def _read_manifests(folder: Path) -> dict[int, Json]:
    manifests: dict[int, Json] = {}
    for path in sorted(folder.glob("*.json")):
        manifest = _read_json(path)
        if manifest and as_int(manifest.get("index")) is not None:
            manifests[int(manifest["index"])] = manifest
    return manifests


def _read_json(path: Path) -> Json | None:
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error})", "Restore it, or run the stage again") from error
    return tree if isinstance(tree, dict) else None


def _missing_in_stages(stages: list[StageRecord]) -> Iterator[str]:
    """What finished stages should record and do not, one line per kind of thing."""
    finished = [stage for stage in stages if stage.finished]
    checks: dict[str, Callable[[StageRecord], bool]] = {
        "held-out bits per byte": lambda stage: stage.evaluated("bits_per_byte", "end") is not None,
        "total parameters": lambda stage: stage.total_parameters is not None,
        "active parameters": lambda stage: stage.active_parameters is not None,
        "text samples": lambda stage: bool(stage.samples),
        "the check of frozen tensors": lambda stage: bool(stage.manifest.get("frozen_check")),
        "seconds": lambda stage: stage.metric("seconds") is not None,
    }
    for what, present in checks.items():
        absent = [str(stage.index) for stage in finished if not present(stage)]
        if absent:
            yield f"{what} in stage {', '.join(absent)}"


def _values_of(tree: Any, name: str) -> Iterator[Any]:
    """Values of the named key anywhere in a configuration tree, outermost first."""
    if isinstance(tree, Mapping):
        if tree.get(name) is not None:
            yield tree[name]
        for value in tree.values():
            yield from _values_of(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _values_of(value, name)
