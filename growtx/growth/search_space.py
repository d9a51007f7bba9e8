"""What a sweep may change about a stage: the dimensions it searches, and how a choice is put into the plan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from growtx.config import ConfigModel, build
from growtx.exceptions import ConfigError
from growtx.growth.plan import Init, LoraConfig, Stage, StageConfig

LORA_KEYS = ("rank", "alpha", "targets")
Values = dict[str, Any]  # dotted key of a dimension -> its value in one trial


class RangeConfig(ConfigModel):
    """Numbers between `low` and `high`, drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> RangeConfig:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low={self.low:g}, high={self.high:g} is no range{' of logarithms' * self.log}")
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
    """What the plan itself has for the dimensions: the trial that every other one is compared with."""
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


def changed_stage(config: StageConfig, values: Mapping[str, Any]) -> StageConfig:
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
        changes["lora"] = build(LoraConfig, {**config.lora.model_dump(), **lora_values})
    return config.model_copy(update=changes)


def draw(dimension: Dimension, random: np.random.Generator) -> Any:
    """A value of a dimension, rounded to four digits: a person will copy it."""
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
