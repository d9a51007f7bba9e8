"""The configuration of specialists: what they share, what each has of its own, and how they are merged."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from growtx.config import ConfigModel, build_config, load_preset
from growtx.data.sources import DataConfig, SourceConfig
from growtx.exceptions import ConfigError
from growtx.growth.plan import BudgetConfig, PlanConfig, StageConfig
from growtx.growth.scaling import control_plan
from growtx.merge.driver import MergeConfig
from growtx.merge.scores import TRUNK
from growtx.models.configuration import GrowtxConfig
from growtx.run.config import TRAINING_VALUES, JobConfig, RunConfig
from growtx.train.settings import ResourcesConfig

DEFAULT_SPECIALISTS_PRESET = "specialists-demo"
CONTROL_RUN = "control"
TRUNK_RUN = TRUNK


class SpecialistConfig(ConfigModel):
    """One specialist; settings left out are the shared ones."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    data: DataConfig
    plan: PlanConfig | None = Field(None, description="null: the shared plan")
    resources: ResourcesConfig | None = Field(None, description="its share of the cluster; null: the shared one")
    seed: int | None = Field(None, ge=0, description="null: the shared seed")


class TrunkConfig(ConfigModel):
    """What all specialists branch from: a plan to grow first, or a run that is there already."""

    plan: PlanConfig | None = Field(None, description="stages that are grown on the data of all specialists")
    run: str | None = Field(None, description="a run directory, or a manifest in one, to branch from instead")
    resources: ResourcesConfig | None = Field(None, description="its share of the cluster; null: the shared one")

    @model_validator(mode="after")
    def _one_way(self) -> TrunkConfig:
        if self.plan is not None and self.run is not None:
            raise ValueError(
                f"trunk.plan and trunk.run={self.run} are both given; remove trunk.plan to branch from that run, or "
                "trunk.run to grow a trunk"
            )
        if self.plan is None and self.run is None:
            raise ValueError("trunk has neither plan nor run; give trunk.plan to grow one, or trunk.run to take a run")
        if self.run is not None and self.resources is not None:
            raise ValueError(f"trunk.run={self.run} is not trained; remove trunk.resources")
        return self


class TuneHeadsConfig(ConfigModel):
    """A stage for every member after its plan: the head alone trains, on all data."""

    tokens: int = Field(gt=0, description="tokens for each member")
    learning_rate: float = Field(1e-3, gt=0)


class SpecialistsConfig(JobConfig):
    """Everything that `growtx specialists` needs."""

    changeable: ClassVar[tuple[str, ...]] = TRAINING_VALUES

    kind: Literal["specialists"] = "specialists"
    plan: PlanConfig
    trunk: TrunkConfig | None = Field(
        None, description="what all specialists branch from; `plan` then continues it; null: each begins with nothing"
    )
    specialists: tuple[SpecialistConfig, ...] = Field(min_length=1)
    retries: int = Field(1, ge=0, description="how often a failed specialist is restarted, while the others continue")
    control: bool = Field(False, description="also train one dense model on all data with the FLOPs of all plans")
    tune_heads: TuneHeadsConfig | None = None
    merge: MergeConfig = MergeConfig()

    @model_validator(mode="after")
    def _consistent(self) -> SpecialistsConfig:
        names = [specialist.name for specialist in self.specialists]
        if len(set(names)) != len(names) or {CONTROL_RUN, TRUNK_RUN} & set(names):
            raise ValueError(
                f"each specialist needs a name of its own, and none may be called {CONTROL_RUN} or {TRUNK_RUN}"
            )
        fractions = {specialist.data.validation_fraction for specialist in self.specialists}
        if len(fractions) > 1:
            raise ValueError(
                "all specialists must hold out the same data.validation_fraction, or one would train on what "
                "another one is measured on"
            )
        for specialist in self.specialists:
            _check_batches(self, specialist.resources, specialist.plan or self.plan)
        if self.trunk is not None and self.trunk.plan is not None:
            _check_batches(self, self.trunk.resources, self.trunk.plan)
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> SpecialistsConfig:
        if self.parent is not None and self.trunk is not None and self.trunk.run is not None:
            raise ValueError(
                f"trunk.run={self.trunk.run} and parent={self.parent} both say what the specialists continue; remove "
                "parent"
            )
        return self

    @property
    def names(self) -> list[str]:
        return [specialist.name for specialist in self.specialists]

    def resources_of(self, name: str) -> ResourcesConfig:
        """What a specialist, the trunk or the control runs on."""
        own = {specialist.name: specialist.resources for specialist in self.specialists}
        own |= {TRUNK_RUN: self.trunk.resources} if self.trunk else {}
        return own.get(name) or self.resources

    def identity_fields(self) -> dict[str, Any]:
        tree = super().identity_fields()
        del tree["retries"]
        for specialist in tree["specialists"]:
            del specialist["resources"]
        if self.trunk is not None:
            del tree["trunk"]["resources"]
        return tree

    def run_config(self, specialist: SpecialistConfig, *, trunk: str | None = None) -> RunConfig:
        """A specialist as a run of its own.

        Args:
            trunk: directory of the run that it branches from; None: it begins with `parent`, or with nothing.
        """
        seed = self.seed if specialist.seed is None else specialist.seed
        plan = specialist.plan or self.plan
        resources = self.resources_of(specialist.name)
        return self._run(specialist.name, specialist.data, plan, resources, seed, parent=trunk or self.parent)

    def trunk_config(self) -> RunConfig:
        """The trunk that is to be grown, as a run of its own on the data of all specialists."""
        return self._run(TRUNK_RUN, all_data(self), self.first_plan, self.resources_of(TRUNK_RUN), self.seed)

    def shared_config(self) -> RunConfig:
        """A run on all data that is never trained: its tokenizer, substrate and packed data are shared by all."""
        return self._run("shared", all_data(self), self.first_plan, self.resources, self.seed)

    @property
    def first_plan(self) -> PlanConfig:
        """A plan that can begin with nothing, which one that continues a trunk may be unable to do."""
        if self.trunk is None:
            return self.plan
        if self.trunk.plan is not None:
            return self.trunk.plan
        first = StageConfig(train=self.plan.stage_configs()[0].train)
        changes = {"mode": "grow", "grow": None, "stages": (first,), "budget": BudgetConfig()}
        return self.plan.model_copy(update=changes)

    def control_config(
        self, shape: GrowtxConfig, flops: float, *, num_blocks: int, num_blocks_before: int
    ) -> RunConfig:
        """The control: a model of `num_blocks` blocks, all trained in one stage on all data, for `flops` FLOPs.

        Args:
            shape: of the specialists' models; its depth is not used.
        """
        plan = control_plan(
            self.first_plan,
            shape,
            "flops",
            flops,
            tokens_per_step=self.training.global_batch_size * self.model.context_length,
            num_blocks=num_blocks,
            num_blocks_before=num_blocks_before,
        )
        plan = plan.model_copy(update={"budget": BudgetConfig()})  # which is for stages; a control trains everything
        return self._run(CONTROL_RUN, all_data(self), plan, self.resources, self.seed)

    def _run(
        self,
        name: str,
        data: DataConfig,
        plan: PlanConfig,
        resources: ResourcesConfig,
        seed: int,
        **changes: Any,
    ) -> RunConfig:
        shared = {key: getattr(self, key) for key in JobConfig.model_fields if key != "provenance"}
        changes = {"name": name, "description": "", "seed": seed, "resources": resources, **changes}
        return RunConfig(**{**shared, **changes}, data=data, plan=plan)


def _check_batches(config: SpecialistsConfig, own: ResourcesConfig | None, plan: PlanConfig) -> None:
    resources, stages = own or config.resources, plan.stages or ()
    resources.check_fixed("specialists")
    for num_workers in (resources.num_workers, *(stage.num_workers for stage in stages if stage.num_workers)):
        config.training.check_workers(num_workers)


def all_data(config: SpecialistsConfig) -> DataConfig:
    """The data of all specialists as one mix, in which every specialist has the same share.

    A source that several specialists read appears once, with the sum of its shares.
    """
    weights: dict[str, float] = {}
    sources: dict[str, SourceConfig] = {}
    for specialist in config.specialists:
        total = sum(source.weight for source in specialist.data.sources)
        for name, source in zip(specialist.data.source_names, specialist.data.sources, strict=True):
            same = next((key for key, known in sources.items() if reads_the_same(known, source)), None)
            key = same or (name if name not in sources else f"{specialist.name}-{name}")
            sources.setdefault(key, source)
            weights[key] = weights.get(key, 0.0) + source.weight / total
    return DataConfig(
        sources=tuple(
            source.model_copy(update={"name": key, "weight": round(weights[key], 12)})
            for key, source in sources.items()
        ),
        validation_fraction=config.specialists[0].data.validation_fraction,
    )


def reads_the_same(first: SourceConfig, second: SourceConfig) -> bool:
    """Whether two sources are the same text, whatever they are called and weigh."""
    free = {"name", "weight"}
    return first.model_dump(exclude=free) == second.model_dump(exclude=free)


def load_specialists_config(preset: str | None, overrides: list[str]) -> SpecialistsConfig:
    """A validated configuration from a preset (or file) and dotted overrides.

    Raises:
        ConfigError: naming key, value and remedy.
    """
    tree = load_preset(preset or DEFAULT_SPECIALISTS_PRESET)
    if tree.get("kind") != "specialists":
        raise ConfigError(
            f"--preset {preset}: not a specialists preset",
            f"Use one with `kind: specialists`: {DEFAULT_SPECIALISTS_PRESET}",
        )
    return build_config(SpecialistsConfig, tree, overrides)
