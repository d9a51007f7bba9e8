"""The configuration of a run: one block for each part, resolved before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from growtx.config import ConfigModel, build_config, load_preset
from growtx.data.sources import DataConfig
from growtx.data.tokenizer import TokenizerConfig
from growtx.evaluate.evaluation import TaskSelection, resolve_tasks
from growtx.exceptions import ConfigError
from growtx.growth.plan import BudgetConfig, ModelConfig, PlanConfig, resolve
from growtx.substrate.build import SubstrateConfig
from growtx.train.settings import ResourcesConfig, TrainingConfig
from growtx.train.tracking import TrackingConfig

# The block `benchmarks`: what is measured when a run has ended, and the controls it is compared with.


Controls = Literal["none", "last", "all"]


class BenchmarksConfig(TaskSelection):
    """The block `benchmarks`: what is measured at every depth when a run has ended; no tasks: nothing."""

    protocols: tuple[Literal["log-likelihood", "sampled letter"], ...] = ("log-likelihood",)
    controls: Controls = Field(
        "none", description="monolithic models of equal FLOPs to train as well: for the final depth, or for every depth"
    )

    def check(self) -> None:
        """Check the block before anything is trained.

        Raises:
            ConfigError: a task does not exist, its package is not installed, or there are controls but no tasks.
        """
        if self.tasks:
            resolve_tasks(self.benchmark())
        elif self.controls != "none":
            raise ConfigError(f"benchmarks.controls={self.controls} without tasks", "Set benchmarks.tasks too")


def control_plans(plan: PlanConfig, which: Controls) -> dict[int, PlanConfig]:
    """Plans of the controls by depth: monolithic, with the FLOPs that the grown model took to reach that depth.

    A first stage that trains all blocks needs no control: grown and monolithic are then the same.

    Raises:
        ConfigError: the plan's own FLOPs are not known in advance, or it is monolithic itself.
    """
    if which == "none":
        return {}
    stages, written = resolve(plan), plan.stage_configs()
    if plan.mode == "monolithic" or any(stage.train.seconds or stage.train.convergence for stage in stages):
        raise ConfigError(
            f"benchmarks.controls={which}: the plan is monolithic itself, or a stage ends by seconds or convergence",
            "Set benchmarks.controls=none, or limit every stage by train.tokens or train.steps",
        )
    ends = {stage.num_blocks: index for index, stage in enumerate(stages, start=1)}  # the last stage of each depth
    depths = [depth for depth, index in ends.items() if index > 1]
    shared = {"mode": "monolithic", "match": "flops", "grow": None, "budget": BudgetConfig()}
    return {
        depth: plan.model_copy(update={**shared, "stages": written[: ends[depth]]})
        for depth in (depths if which == "all" else depths[-1:])
    }


DEFAULT_RUN_PRESET = "demo"

# What may differ between a run and its resumption: nothing that affects the results.
_FREE_ON_RESUME = ("name", "description", "license", "resources", "tracking", "benchmarks", "cache_dir", "provenance")
_FREE_TRAINING = (
    "zero_stage", "offload_optimizer", "micro_batch_size", "log_every_steps", "checkpoint", "compile",
    "activation_checkpointing", "loss_kernel", "prefix", "prefix_cache_gib",
)  # fmt: skip


# What decides the results, and may still change on the way: how unfinished stages train.
TRAINING_VALUES = (
    "plan.", "training.gradient_clipping", "training.global_batch_size", "training.evaluation.prompts",
    "training.evaluation.num_samples", "training.evaluation.sample_tokens", "training.evaluation.temperature",
)  # fmt: skip


class JobConfig(ConfigModel):
    """Settings that every training job has.

    Attributes:
        changeable: beginnings of keys that a job may be resumed with other values of although they decide its results.
            None where a comparison would then mix them.
    """

    changeable: ClassVar[tuple[str, ...]] = ()
    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="runs are named NAME-TIME by default")
    description: str = ""
    license: str | None = Field(None, description="of the model, for its model card; an SPDX identifier")
    seed: int = Field(0, ge=0)
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    substrate: SubstrateConfig = SubstrateConfig()
    parent: str | None = Field(None, description="run directory or manifest whose model the plan continues")
    training: TrainingConfig = TrainingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    cache_dir: str | None = Field(None, description="for packed data and substrates; null: `cache` next to the run")
    provenance: dict[str, Any] | None = Field(None, description="written into run.yaml, never read")

    def identity_fields(self) -> dict[str, Any]:
        """The part that determines the results; a run directory belongs to exactly one such part."""
        tree = self.model_dump(mode="json", exclude=set(_FREE_ON_RESUME))
        tree["training"] = {key: value for key, value in tree["training"].items() if key not in _FREE_TRAINING}
        if isinstance(tree.get("data"), dict):
            tree["data"].pop("local_bytes", None)
        return tree


class RunConfig(JobConfig):
    """Everything that `growtx grow` needs."""

    changeable: ClassVar[tuple[str, ...]] = TRAINING_VALUES
    renamed_keys: ClassVar[Mapping[str, str]] = {"capability": "benchmarks"}

    data: DataConfig = DataConfig()
    plan: PlanConfig
    benchmarks: BenchmarksConfig = BenchmarksConfig()

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all workers."""
        return self.training.global_batch_size * self.model.context_length

    @model_validator(mode="after")
    def _batch_splits(self) -> RunConfig:
        group = self.resources
        self.training.check_workers(group.num_workers, is_elastic=group.is_elastic)
        for stage in self.plan.stage_configs():
            batch = stage.train.get("global_batch_size", self.plan.train.get("global_batch_size"))
            own = group if stage.num_workers is None else group.of_size(stage.num_workers)
            self.training.with_batch(batch).check_workers(own.num_workers, is_elastic=own.is_elastic)
        return self

    @model_validator(mode="after")
    def _stages_have_data(self) -> RunConfig:
        known = self.data.source_names
        for index, stage in enumerate(self.plan.stages or (), start=1):
            if stage.data is None:
                continue
            if unknown := [name for name in stage.data if name not in known]:
                raise ValueError(
                    f"plan.stages.{index - 1}.data: there is no source {unknown[0]!r}; data.sources has "
                    f"{', '.join(known)}, and a source gets a name of its own by its key `name`"
                )
            if not any(stage.data.values()):
                raise ValueError(
                    f"plan.stages.{index - 1}.data: no source has a weight; give one of {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _muon_stays_on_its_device(self) -> RunConfig:
        trains = [{**self.plan.train, **stage.train} for stage in self.plan.stage_configs()]
        if self.training.offload_optimizer and any(train.get("optimizer") == "muon" for train in trains):
            raise ValueError(
                "plan.train.optimizer=muon gathers whole matrices on the GPU, and training.offload_optimizer keeps "
                "them in the host's memory; set one of the two to its default"
            )
        return self

    def largest_group(self) -> ResourcesConfig:
        """What the stage with the most workers needs at least."""
        counts = [stage.num_workers or 0 for stage in self.plan.stages or ()]
        return self.resources.of_size(max([self.resources.fewest_workers, *counts]))


def load_run_config(preset: str | None, overrides: list[str]) -> RunConfig:
    """A validated configuration from a preset (or file) and dotted overrides.

    Raises:
        ConfigError: naming key, value and remedy.
    """
    tree = load_preset(preset or DEFAULT_RUN_PRESET)
    if kind := tree.get("kind"):
        raise ConfigError(f"--preset {preset}: a {kind} preset, not one for a run", f"Use `growtx {kind}` with it")
    return build_config(RunConfig, tree, overrides)


def differing_keys(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys at which two trees differ."""
    keys: list[str] = []
    for key in sorted(first.keys() | second.keys()):
        one, other = first.get(key), second.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            keys += differing_keys(one, other, f"{prefix}{key}.")
        elif one != other:
            keys.append(prefix + key)
    return keys
