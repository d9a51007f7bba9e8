"""The configuration of a study: one base run, and named variants of it that are compared under one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from growtx.config import ConfigModel, build_config, load_preset, merged
from growtx.data.sources import DataConfig
from growtx.evaluate.evaluation import TaskSelection
from growtx.exceptions import ConfigError, about
from growtx.growth.plan import PlanConfig
from growtx.growth.scaling import Measure
from growtx.run.config import JobConfig, RunConfig

DEFAULT_STUDY_PRESET = "study-demo"
# What may change when a study is resumed: each of its runs has an identity of its own.
_FREE = ("variants", "control", "seeds", "equal", "learning_rates", "max_concurrent")


class VariantConfig(ConfigModel):
    """One way to train: what it changes in the base run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    change: dict[str, Any] = Field(default_factory=dict, description="merged into the base run, key by key")
    learning_rates: tuple[float, ...] | None = Field(None, description="learning rates to try; null: the study's")


class StudyConfig(JobConfig):
    """Everything that `growtx study` needs."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "tasks": "benchmarks.tasks",
        "task_limit": "benchmarks.limit",
        "data_dir": "benchmarks.data_dir",
        "lanes": "max_concurrent",
    }

    kind: Literal["study"] = "study"
    data: DataConfig = DataConfig()
    plan: PlanConfig
    control: str = Field(description="variant whose plan determines the others' tokens and FLOPs")
    variants: tuple[VariantConfig, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    equal: tuple[Measure, ...] = Field(("tokens", "flops"), min_length=1, description="what is equal for all variants")
    learning_rates: tuple[float, ...] = Field(
        (), description="all are tried on the first seed, the best is used for the others; empty: the plan's"
    )
    benchmarks: TaskSelection = Field(TaskSelection(), description="scored at all depths of the first seed's runs")
    max_concurrent: int | None = Field(None, ge=1, description="concurrency: runs at a time; null: as many as fit")

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("each variant needs a name of its own")
        if self.control not in names:
            raise ValueError(f"control={self.control} is not one of the variants {', '.join(names)}")
        if self.training.prefix == "auto":
            raise ValueError("training.prefix=auto: FLOPs would not be known in advance; use recompute")
        for variant in self.variants:
            self.base_run(variant).resources.check_fixed("a study")
        return self

    def identity_fields(self) -> dict[str, Any]:
        return {key: value for key, value in super().identity_fields().items() if key not in _FREE}

    def base_run(self, variant: VariantConfig) -> RunConfig:
        """The variant as a run, before its length, learning rate and seed are set."""
        own = {"provenance", "description", "benchmarks"}
        base = self.model_dump(mode="json", include=set(RunConfig.model_fields) - own)
        with about(f"variant {variant.name}"):
            return build_config(RunConfig, merged(base, variant.change))

    def rates_of(self, variant: VariantConfig) -> tuple[float, ...]:
        """Learning rates to try."""
        own = self.learning_rates if variant.learning_rates is None else variant.learning_rates
        return own or (float(self.base_run(variant).plan.train.get("learning_rate", 1e-3)),)


def load_study_config(preset: str | None, overrides: list[str]) -> StudyConfig:
    """A validated configuration from a preset (or file) and dotted overrides.

    A preset of one run with the shorthand `grow` (`study-9`, say) becomes the base of the default study's variants:
    grown and monolithic, on three substrates, without the budget that a control cannot keep.

    Raises:
        ConfigError: naming key, value and remedy.
    """
    tree = load_preset(preset or DEFAULT_STUDY_PRESET)
    kind = tree.get("kind")
    if kind is None and "grow" in tree.get("plan", {}):
        protocol = load_preset(DEFAULT_STUDY_PRESET)
        taken = {key: protocol[key] for key in ("kind", "control", "variants", "seeds", "equal")}
        tree = merged(tree, {**taken, "training": {"prefix": "recompute"}})
        tree["plan"].pop("budget", None)
        for block in ("benchmarks", *RunConfig.renamed_keys):  # a study has tasks of its own
            tree.pop(block, None)
    elif kind != "study":
        raise ConfigError(
            f"--preset {preset}: neither a study preset nor a run preset with plan.grow",
            f"Use one with `kind: study`: {DEFAULT_STUDY_PRESET}",
        )
    return build_config(StudyConfig, tree, overrides)
