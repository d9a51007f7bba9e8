"""The configuration of a sweep: a run of `growtx grow`, and what is searched in its stages."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from growtx.config import ConfigModel, build_config, load_preset
from growtx.exceptions import ConfigError
from growtx.growth.plan import Stage, resolve
from growtx.run.config import RunConfig
from growtx.sweep.search import Sampler, SpaceConfig, grid
from growtx.sweep.tune import SchedulerConfig

DEFAULT_SWEEP_PRESET = "sweep-demo"


class SweepSettings(ConfigModel):
    """The `sweep` block."""

    stage: int | None = Field(
        None, ge=1, description="the only stage to search, from 1; null: all, each on the best parent"
    )
    num_trials: int = Field(8, ge=1, description="trials per stage; a grid has one for each of its points")
    sampler: Sampler = "random"
    scheduler: SchedulerConfig = SchedulerConfig()
    include_planned: bool = Field(True, description="the first trial has the plan's own values (not in a grid)")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; null: as many as fit")
    space: SpaceConfig = SpaceConfig()


class SweepConfig(RunConfig):
    """Everything that `growtx sweep` needs."""

    changeable: ClassVar[tuple[str, ...]] = ("sweep.space.", "sweep.num_trials")

    kind: Literal["sweep"] = "sweep"
    sweep: SweepSettings

    @model_validator(mode="after")
    def _group_has_one_size(self) -> SweepConfig:
        self.resources.check_fixed("a sweep")
        return self

    @model_validator(mode="after")
    def _batches_split(self) -> SweepConfig:
        for batch in self.sweep.space.global_batch_size or ():
            self.training.with_batch(batch).check_workers(self.resources.num_workers)
        return self

    def identity_fields(self) -> dict[str, Any]:
        tree = super().identity_fields()
        del tree["sweep"]["max_concurrent"]
        return tree

    def run_config(self, **changes: Any) -> RunConfig:
        """The run without its sweep."""
        shared = {key: getattr(self, key) for key in RunConfig.model_fields if key != "provenance"}
        return RunConfig(**{**shared, **changes})

    def stages(self) -> list[Stage]:
        """The stages to search, as the plan has them.

        Raises:
            ConfigError: the plan has no such stage, or there is nothing to search in one.
        """
        stages = resolve(self.plan)
        chosen = self.sweep.stage
        if chosen is not None and chosen > len(stages):
            raise ConfigError(
                f"--stage {chosen}: the plan has {len(stages)} stages", f"Use a number from 1 to {len(stages)}"
            )
        if chosen is not None and chosen > 1 and self.parent is None:
            raise ConfigError(
                f"--stage {chosen} needs a parent: a run in which the {chosen - 1} stages before it are finished",
                "Set parent=RUN_DIRECTORY, or search all stages with --greedy",
            )
        found = [stage for stage in stages if chosen in (None, stage.index)]
        for stage in found:
            dimensions = self.sweep.space.dimensions(stage)
            if self.sweep.sampler == "grid":
                list(grid(dimensions))
        return found


def load_sweep_config(preset: str | None, overrides: list[str]) -> SweepConfig:
    """A validated configuration from a preset (or file) and dotted overrides.

    Raises:
        ConfigError: naming key, value and remedy.
    """
    tree = load_preset(preset or DEFAULT_SWEEP_PRESET)
    if tree.get("kind") != "sweep":
        raise ConfigError(
            f"--preset {preset}: not a sweep preset",
            f"Use one with `kind: sweep` ({DEFAULT_SWEEP_PRESET}), "
            f"or a file with `extends: {preset}` and a `sweep` block",
        )
    config = build_config(SweepConfig, tree, overrides)
    config.stages()
    return config
