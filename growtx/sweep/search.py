"""Which values a trial has: random, a grid, or the tree-structured Parzen estimator; resumable from records.

Random and grid values are pure functions of seed and number, so a resumed sweep has the trials it would have had.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from ray.tune.search import Searcher

from growtx.config import ConfigModel, build_config
from growtx.exceptions import ConfigError
from growtx.growth.plan import Init, LoraConfig, Stage, StageConfig
from growtx.store.trials import TrialRecord

# What a sweep may change about a stage: the dimensions it searches, and how a choice is put into the plan.


LORA_KEYS = ("rank", "alpha", "targets")
Values = dict[str, Any]  # dotted key of a dimension -> its value in one trial


class RangeConfig(ConfigModel):
    """Numbers between `low` and `high`, drawn uniformly, or uniformly in their logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> RangeConfig:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low={self.low:g}, high={self.high:g} is not a range{' of logarithms' * self.log}")
        return self


def _not_empty(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not value:
        raise ValueError("the list is empty; give at least one value, or leave the key out")
    if value is not None and not isinstance(value, (list, tuple, Mapping, RangeConfig)):
        raise ValueError("write a list of values or a range {low: ..., high: ..., log: true}")
    return value


Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Floats = Annotated[RangeConfig | tuple[Positive, ...] | None, BeforeValidator(_not_empty)]
Shares = Annotated[RangeConfig | tuple[Share, ...] | None, BeforeValidator(_not_empty)]
Integers = Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, BeforeValidator(_not_empty)]
Dimension = RangeConfig | tuple[Any, ...]


class LoraSpace(ConfigModel):
    """Searched in stages that have a LoRA phase."""

    rank: Integers = None
    alpha: Floats = None
    targets: Annotated[tuple[str | tuple[str, ...], ...] | None, BeforeValidator(_not_empty)] = None


class SpaceConfig(ConfigModel):
    """The dimensions of a sweep. Each is a list of values or a range; null: stays as the plan has it."""

    learning_rate: Floats = None
    head_learning_rate: Floats = None
    warmup: Shares = None
    weight_decay: Shares = None
    final_learning_rate: Shares = None
    global_batch_size: Integers = None
    init: Annotated[tuple[Init, ...] | None, BeforeValidator(_not_empty)] = None
    lora: LoraSpace = LoraSpace()

    def dimensions(self, stage: Stage) -> dict[str, Dimension]:
        """The dimensions that mean something in a stage.

        Raises:
            ConfigError: none does.
        """
        given = {key: getattr(self, key) for key in SpaceConfig.model_fields if key != "lora"}
        given |= {f"lora.{key}": getattr(self.lora, key) for key in LORA_KEYS if stage.lora is not None}
        if not stage.add:
            given["init"] = None
        found = {key: dimension for key, dimension in given.items() if dimension is not None}
        if not found:
            raise ConfigError(
                f"sweep.space has nothing to search in stage {stage.index} ({stage.name})",
                "Give a list or a range for one of learning_rate, warmup, weight_decay, init, lora.rank, ...",
            )
        return found


def planned_values(stage: Stage, dimensions: Mapping[str, Dimension], global_batch_size: int) -> Values:
    """The plan's own values for the dimensions: the trial that all others are compared with."""
    values: Values = {}
    for key in dimensions:
        if key.startswith("lora."):
            values[key] = getattr(stage.lora, key.removeprefix("lora."))
        elif key == "init":
            values[key] = stage.init
        else:
            values[key] = getattr(stage.train, key)
    if "global_batch_size" in values:
        values["global_batch_size"] = values["global_batch_size"] or global_batch_size
    if "head_learning_rate" in values:
        values["head_learning_rate"] = values["head_learning_rate"] or stage.train.learning_rate
    return values


def stage_with_values(config: StageConfig, values: Mapping[str, Any]) -> StageConfig:
    """A stage of a plan with the values of a trial.

    Raises:
        ConfigError: they cannot be combined.
    """
    lora_values = {key.removeprefix("lora."): value for key, value in values.items() if key.startswith("lora.")}
    train = {key: value for key, value in values.items() if key != "init" and not key.startswith("lora.")}
    changes: dict[str, Any] = {"train": {**config.train, **train}}
    if "init" in values:
        changes["init"] = values["init"]
    if lora_values and config.lora is not None:
        changes["lora"] = build_config(LoraConfig, {**config.lora.model_dump(), **lora_values})
    return config.model_copy(update=changes)


def draw(dimension: Dimension, random: np.random.Generator) -> Any:
    """A value of a dimension, rounded to four digits, because people will copy it."""
    if not isinstance(dimension, RangeConfig):
        return dimension[int(random.integers(len(dimension)))]
    low, high = dimension.low, dimension.high
    value = math.exp(random.uniform(math.log(low), math.log(high))) if dimension.log else random.uniform(low, high)
    return rounded(value)


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def grid(dimensions: Mapping[str, Dimension]) -> Iterator[Values]:
    """Every combination.

    Raises:
        ConfigError: a dimension is a range.
    """
    for key, dimension in dimensions.items():
        if isinstance(dimension, RangeConfig):
            raise ConfigError(
                f"sweep.sampler=grid: sweep.space.{key} is a range, which has no grid",
                "Give a list of values, or use sweep.sampler=random or tpe",
            )
    for combination in itertools.product(*dimensions.values()):
        yield dict(zip(dimensions, combination, strict=True))


def is_inside(dimensions: Mapping[str, Dimension], values: Mapping[str, Any]) -> bool:
    """Whether a trial with these values could be drawn from a space."""
    return dimensions.keys() == values.keys() and all(holds(dimensions[key], values[key]) for key in dimensions)


def holds(dimension: Dimension, value: Any) -> bool:
    """Whether a dimension of a space has a value."""
    if isinstance(dimension, RangeConfig):
        return value is not None and bool(dimension.low <= value <= dimension.high)
    return _plain(value) in map(_plain, dimension)


def _plain(value: Any) -> Any:
    """A value as it is when it was written and read again."""
    return list(value) if isinstance(value, tuple) else value


METRIC = "bits_per_byte"
Sampler = Literal["random", "tpe", "grid"]


class Proposer(Protocol):
    """Gives trials their values, and may learn from their results."""

    def propose(self, number: int) -> Values: ...

    def observe(self, number: int, values: Values, bits_per_byte: float) -> None: ...


class RandomProposer:
    """Independent draws."""

    def __init__(self, dimensions: Mapping[str, Dimension], seed: Sequence[int]) -> None:
        self._dimensions, self._seed = dimensions, seed

    def propose(self, number: int) -> Values:
        random = np.random.default_rng([*self._seed, number])
        return {key: draw(dimension, random) for key, dimension in self._dimensions.items()}

    def observe(self, number: int, values: Values, bits_per_byte: float) -> None:
        """Draws do not depend on results."""


class GridProposer:
    """Every combination once."""

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self._all = list(grid(dimensions))

    def __len__(self) -> int:
        return len(self._all)

    def propose(self, number: int) -> Values:
        return self._all[number]

    def observe(self, number: int, values: Values, bits_per_byte: float) -> None:
        """The grid is fixed."""


class TpeProposer:
    """Optuna's TPE (Bergstra et al., NeurIPS 2011); a third of the trials, at least three, are random first."""

    def __init__(self, dimensions: Mapping[str, Dimension], seed: Sequence[int], num_trials: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "sweep.sampler=tpe needs the package optuna", "Run pip install optuna, or use random or grid"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._dimensions = optuna, dimensions
        self._num_random = max(3, num_trials // 3)
        self._seed = seed
        self._study = optuna.create_study(direction="minimize")
        self._distributions: dict[str, Any] = {
            key: optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
            if isinstance(dimension, RangeConfig)
            else optuna.distributions.CategoricalDistribution(range(len(dimension)))
            for key, dimension in dimensions.items()
        }
        self._asked: dict[int, Any] = {}

    def propose(self, number: int) -> Values:
        seed = int(np.random.default_rng([*self._seed, number]).integers(2**31))
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._num_random)
        trial = self._asked[number] = self._study.ask(self._distributions)
        return {
            key: rounded(trial.params[key]) if isinstance(dimension, RangeConfig) else dimension[trial.params[key]]
            for key, dimension in self._dimensions.items()
        }

    def observe(self, number: int, values: Values, bits_per_byte: float) -> None:
        if number in self._asked:
            self._study.tell(self._asked.pop(number), bits_per_byte)
            return
        parameters = self._parameters(values)
        if parameters is not None:
            trial = self._optuna.trial.create_trial(
                params=parameters, distributions=self._distributions, value=bits_per_byte
            )
            self._study.add_trial(trial)

    def _parameters(self, values: Values) -> dict[str, Any] | None:
        """Values as Optuna has them; None where one lies outside of the space, as a plan's own may."""
        parameters: dict[str, Any] = {}
        for key, dimension in self._dimensions.items():
            if key not in values or not holds(dimension, values[key]):  # or it was not searched when this was begun
                return None
            value = values[key]
            is_range = isinstance(dimension, RangeConfig)
            parameters[key] = value if is_range else list(map(_plain, dimension)).index(_plain(value))
        return parameters


class RecordedSearch(Searcher):
    """Tune's searcher over what is recorded: unfinished trials first, then new ones up to `num_trials`.

    A trial that failed outside of the space counts as none: the space was another one when it was begun.

    Args:
        records: trials that were begun before.
        planned: values of the first trial, or None to draw all.
    """

    def __init__(
        self,
        proposer: Proposer,
        records: Sequence[TrialRecord],
        *,
        num_trials: int,
        planned: Values | None,
        dimensions: Mapping[str, Dimension] | None = None,
    ) -> None:
        super().__init__(metric=METRIC, mode="min")
        self._proposer, self._planned = proposer, planned
        self._todo = [record for record in records if record.state == "running"]
        counted = [
            record
            for record in records
            if dimensions is None or record.planned or record.state != "failed" or is_inside(dimensions, record.values)
        ]
        self._new = _new_trials(proposer, records, counted, num_trials)
        self._running: dict[str, tuple[int, Values]] = {}
        self.is_stopping = False
        for record in records:
            if record.state in ("finished", "stopped") and record.bits_per_byte is not None:
                proposer.observe(record.number, record.values, record.bits_per_byte)

    @property
    def num_left(self) -> int:
        return len(self._todo) + len(self._new)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self.is_stopping or not self.num_left:
            return str(Searcher.FINISHED)
        if self._todo:
            record = self._todo.pop(0)
            number, values, planned = record.number, record.values, record.planned
        else:
            number, position = self._new.pop(0)
            planned = number == 0 and self._planned is not None
            values = dict(self._planned or {}) if planned else self._propose(position)
        self._running[trial_id] = (number, values)
        return {"number": number, "values": values, "planned": planned}

    def _propose(self, number: int) -> Values:
        return self._proposer.propose(number if self._planned is None else number - 1)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Only final results are learned from."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, values = self._running.pop(trial_id)
        if result is not None and not error and math.isfinite(result.get(METRIC, math.nan)):
            number -= 0 if self._planned is None else 1
            self._proposer.observe(number, values, result[METRIC])

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file; the state of the search is in the trials' own records."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for: a sweep is resumed from its records."""
        raise NotImplementedError


def _new_trials(
    proposer: Proposer, records: Sequence[TrialRecord], counted: Sequence[TrialRecord], num_trials: int
) -> list[tuple[int, int]]:
    """Numbers of the trials to begin, and what each asks the proposer for."""
    taken = {record.number for record in records}
    free = (number for number in itertools.count() if number not in taken)
    if isinstance(proposer, GridProposer):  # the points that nobody has tried, whatever the grid was before
        tried = [_plain_values(record.values) for record in counted]
        untried = [point for point in range(num_trials) if _plain_values(proposer.propose(point)) not in tried]
        return [(next(free), point) for point in untried]
    return [(number, number) for number in itertools.islice(free, max(0, num_trials - len(counted)))]


def _plain_values(values: Mapping[str, Any]) -> Values:
    return {key: _plain(value) for key, value in values.items()}


def make_proposer(
    sampler: Sampler, dimensions: Mapping[str, Dimension], *, seed: int, stage: int, num_trials: int
) -> Proposer:
    """The proposer of a stage.

    Raises:
        ConfigError: the sampler cannot work on these dimensions, or its package is missing.
    """
    if sampler == "grid":
        return GridProposer(dimensions)
    if sampler == "tpe":
        return TpeProposer(dimensions, (seed, stage), num_trials)
    return RandomProposer(dimensions, (seed, stage))
