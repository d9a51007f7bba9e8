"""The plan: which blocks each stage adds, what trains, how long.

A plan is written as a list of stages or as the shorthand `grow: {...}` for regular ones; `resolve` turns either
into `Stage`s with every default filled in, which is what all other code works with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from growtx.config import ConfigModel, build_config
from growtx.exceptions import ConfigError, about
from growtx.models.configuration import GrowtxConfig

# The model's shape as a user writes it, and the GrowtxConfig of any depth that follows from it.


class ModelConfig(ConfigModel):
    """The `model` block of a run's configuration."""

    hidden_size: int = Field(128, ge=2, description="D, width of the residual stream")
    num_attention_heads: int = Field(4, ge=1)
    context_length: int = Field(256, ge=2, description="T, tokens in a window")
    lm_head_bias: bool = Field(True, description="as in the paper; export to gpt_neox is exact only without a bias")
    initializer_range: float = Field(0.02, gt=0)
    substrate_reinjection: bool = Field(
        False, description="every block first adds the substrate's vector again, times a scalar that it learns"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size} "
                "into heads of even width"
            )
        return self

    def architecture(
        self, *, vocab_size: int, num_blocks: int, final_num_blocks: int, substrate_width: int, expansion: str
    ) -> GrowtxConfig:
        """The GrowtxConfig of `num_blocks` blocks of a model that will have `final_num_blocks`."""
        return GrowtxConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=num_blocks,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=self.context_length,
            lm_head_bias=self.lm_head_bias,
            initializer_range=self.initializer_range,
            substrate_reinjection=self.substrate_reinjection,
            num_layers_for_init=final_num_blocks,
            substrate_width=substrate_width,
            substrate_expansion=expansion,
        )


# How a stage trains: its batch, learning rates and schedule, and what ends it.


class ConvergenceConfig(ConfigModel):
    """End a stage when held-out bits per byte stops improving (the paper's "until convergence")."""

    patience: int = Field(3, ge=1, description="evaluations without improvement before the stage ends")
    min_delta: float = Field(0.001, ge=0, description="bits per byte that count as an improvement")
    every_steps: int = Field(50, ge=1, description="optimizer steps between evaluations")


class StageTraining(ConfigModel):
    """How a stage trains. It ends at the first limit that it reaches."""

    tokens: int | None = Field(None, gt=0, description="tokens to train on")
    steps: int | None = Field(None, gt=0, description="optimizer steps")
    seconds: float | None = Field(None, gt=0, description="wall-clock seconds of training")
    convergence: ConvergenceConfig | None = None
    global_batch_size: int | None = Field(
        None, ge=1, description="windows in an optimizer step of this stage; null: training.global_batch_size"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of the active blocks")
    head_learning_rate: float | None = Field(None, gt=0, description="of final norm and LM head; null: the same")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the stage's steps")
    final_learning_rate: float = Field(0.1, ge=0, le=1, description="share of the peak that the schedule ends at")
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: of the matrices of active blocks; head, norms, biases and adapters keep AdamW"
    )

    @model_validator(mode="after")
    def _has_an_end(self) -> StageTraining:
        if self.tokens is None and self.steps is None:
            raise ValueError(
                "a stage needs an upper limit: set train.tokens or train.steps (seconds, convergence end it sooner)"
            )
        return self

    def tokens_per_step(self, context_length: int, *, default: int) -> int:
        """Tokens of an optimizer step: of this stage's own batch, or `default` where it has none."""
        return default if self.global_batch_size is None else self.global_batch_size * context_length

    def num_steps(self, tokens_per_step: int) -> int:
        """Optimizer steps of the whole stage, unless time or convergence end it sooner."""
        limits = [self.steps] if self.steps else []
        if self.tokens:
            limits.append(max(1, round(self.tokens / tokens_per_step)))
        return min(limits)


ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_TARGETS = ("up_proj", "down_proj")
LINEAR_TARGETS = (*ATTENTION_TARGETS, *MLP_TARGETS)

Init = Literal["random", "identity", "copy"]
Insert = Literal["top", "middle"]
Parametrization = Literal["standard", "completep"]


def _known_targets(value: str | tuple[str, ...]) -> tuple[str, ...]:
    if value == "all-linear":
        return LINEAR_TARGETS
    names = (value,) if isinstance(value, str) else value
    unknown = [name for name in names if name not in LINEAR_TARGETS]
    if unknown or not names:
        raise ValueError(f"unknown target {unknown}; use 'all-linear' or a list of {', '.join(LINEAR_TARGETS)}")
    return names


class LoraConfig(ConfigModel):
    """Low-rank adapters on the frozen blocks (a LoRA phase), merged when the stage ends."""

    rank: int = Field(16, ge=1, description="rank r of every adapter")
    alpha: float = Field(32.0, gt=0, description="scaling is alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Annotated[str | tuple[str, ...], AfterValidator(_known_targets)] = "all-linear"


class StageConfig(ConfigModel):
    """One stage as a user writes it; what is left out comes from the plan's defaults."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    add: int = Field(1, ge=0, description="blocks to add; 0 for a stage that only adapts or tunes")
    active: int | None = Field(None, ge=0, description="newest blocks that train; null: those added")
    head: bool = Field(True, description="whether final norm and LM head train")
    train_substrate: bool = Field(False, description="whether a `learned` substrate trains in this stage")
    init: Init | None = None
    insert: Insert | None = Field(None, description="where the blocks are added; null: plan.insert")
    lora: LoraConfig | None = None
    data: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None, description="weights of sources by name, in this stage alone; others give nothing; null: data.sources"
    )
    num_workers: int | None = Field(None, ge=1, description="workers of this stage; null: resources.num_workers")
    train: dict[str, Any] = Field(default_factory=dict, description="overrides of the plan's `train`")


class GrowShorthand(ConfigModel):
    """A regular plan: `blocks` in steps of `per_stage`."""

    blocks: int = Field(ge=1, description="final depth")
    per_stage: int = Field(1, ge=1, description="blocks added by each stage")
    active: int | None = Field(None, ge=1, description="newest blocks that train; null: those added")
    lora_from: int | None = Field(None, ge=1, description="first depth whose stage also adapts the frozen blocks")
    lora_phase: Literal["joint", "interleaved"] = Field(
        "joint", description="adapt together with the new block, or in a stage of its own after it"
    )
    lora: LoraConfig = LoraConfig()
    first_stage_share: float | None = Field(
        None, gt=0, lt=1, description="share of all tokens that the first stage gets; null: equal shares"
    )
    tokens: int | None = Field(None, gt=0, description="tokens of all stages together; null: `train` applies per stage")
    train_substrate: bool = Field(False, description="whether a `learned` substrate trains in the first stage")

    @model_validator(mode="after")
    def _share_of_something(self) -> GrowShorthand:
        if self.first_stage_share is not None and self.tokens is None:
            raise ValueError("first_stage_share is a share of `tokens`; set tokens too")
        return self

    def stages(self) -> list[StageConfig]:
        """The stages that this shorthand stands for."""
        depths = [*range(self.per_stage, self.blocks, self.per_stage), self.blocks]
        stages: list[StageConfig] = []
        before = 0
        for depth in depths:
            adapts = self.lora_from is not None and depth >= self.lora_from and before > 0
            joint = adapts and self.lora_phase == "joint"
            stages.append(
                StageConfig(
                    add=depth - before,
                    active=self.active,
                    train_substrate=self.train_substrate and before == 0,
                    lora=self.lora if joint else None,
                )
            )
            if adapts and not joint:
                stages.append(StageConfig(name=f"lora-{depth}", add=0, active=0, lora=self.lora))
            before = depth
        return self._with_tokens(stages)

    def _with_tokens(self, stages: list[StageConfig]) -> list[StageConfig]:
        if self.tokens is None:
            return stages
        first = self.first_stage_share if self.first_stage_share and len(stages) > 1 else 1 / len(stages)
        rest = (1 - first) / max(1, len(stages) - 1)
        shares = [first] + [rest] * (len(stages) - 1)
        return [
            stage.model_copy(update={"train": {"tokens": max(1, round(self.tokens * share))}})
            for stage, share in zip(stages, shares, strict=True)
        ]


class BudgetConfig(ConfigModel):
    """The most that a stage may use."""

    active_parameters: int | None = Field(None, gt=0, description="parameters that receive gradients in one stage")


class PlanConfig(ConfigModel):
    """The `plan` block of a run's configuration."""

    mode: Literal["grow", "monolithic"] = Field(
        "grow", description="monolithic: the control; all blocks in one stage, as long as all stages together"
    )
    match: Literal["tokens", "flops"] = Field(
        "tokens", description="what is equal between the control and the plan: tokens seen, or FLOPs computed"
    )
    stages: tuple[StageConfig, ...] | None = None
    grow: GrowShorthand | None = None
    init: Init = Field("random", description="initialisation of new blocks")
    insert: Insert = Field("top", description="whether new blocks go on top of the others, or amid them")
    unfreeze: bool = Field(False, description="train all blocks in every stage: the same growth without freezing")
    schedule: Literal["per_stage", "plan"] = Field(
        "per_stage", description="plan: one warm-up, a rate that is held, one decay at the end; new blocks warm up"
    )
    decay: float = Field(0.2, gt=0, le=1, description="share of the plan's tokens, its last, that schedule=plan decays")
    parametrization: Parametrization = Field(
        "standard", description="completep: learning rates found on a small model hold for a wide and deep one"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="defaults of every stage")
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _one_way(self) -> PlanConfig:
        if (self.stages is None) == (self.grow is None):
            raise ValueError(
                "give the plan either as a list `stages` (with plan.grow=null) or as the shorthand `grow` (with "
                "plan.stages=null)"
            )
        if self.stages is not None and not self.stages:
            raise ValueError("`stages` is empty; give at least one stage")
        return self

    @model_validator(mode="after")
    def _completep_has_adamw(self) -> PlanConfig:
        if self.parametrization == "completep":
            trains = [self.train, *(stage.train for stage in self.stage_configs())]
            if any(train.get("optimizer") == "muon" for train in trains):
                raise ValueError(
                    "parametrization=completep has rates for AdamW only; use train.optimizer=adamw, or "
                    "parametrization=standard"
                )
        return self

    @model_validator(mode="after")
    def _trains(self) -> PlanConfig:
        """Errors in a `train` mapping are reported before a run is started, not when its stage is reached."""
        for index, stage in enumerate(self.stage_configs(), start=1):
            with about(f"plan, stage {index}: train"):
                build_config(StageTraining, {**self.train, **stage.train})
        return self

    def stage_configs(self) -> tuple[StageConfig, ...]:
        """The stages as the user wrote them, the shorthand written out."""
        if self.stages is not None:
            return self.stages
        assert self.grow is not None
        return tuple(self.grow.stages())


class Stage(ConfigModel):
    """A resolved stage.

    Attributes:
        index: position in the plan, from 1.
        num_blocks_before: blocks of the parent model.
        add: blocks that this stage adds.
        insert: where: on top, or amid the parent's.
        num_active: newest blocks that train, out of `num_blocks`.
        span: where the stage begins and ends in a plan of one schedule, as shares of the plan's length; None: it has
            a schedule of its own.
        data: weights of the sources that it trains on, by name; None: those of the run.
        decay: share of the plan that such a schedule decays over.
    """

    index: int
    name: str
    num_blocks_before: int
    add: int
    num_active: int
    head: bool
    train_substrate: bool
    init: Init
    insert: Insert = "top"
    lora: LoraConfig | None
    data: dict[str, float] | None = None
    num_workers: int | None
    train: StageTraining
    span: tuple[float, float] | None = None
    decay: float = 0.2
    parametrization: Parametrization = "standard"

    @property
    def num_blocks(self) -> int:
        return self.num_blocks_before + self.add

    @property
    def position(self) -> int:
        """Index of the lowest new block; in the middle there is always one of the parent's below it."""
        return self.num_blocks_before if self.insert == "top" else (self.num_blocks_before + 1) // 2

    @property
    def new_blocks(self) -> range:
        """Indices of the blocks that the stage adds."""
        return range(self.position, self.position + self.add)

    @property
    def active_blocks(self) -> range:
        """Indices of the blocks that train."""
        if self.insert == "middle" and 0 < self.add == self.num_active:
            return self.new_blocks
        return range(self.num_blocks - self.num_active, self.num_blocks)

    @property
    def num_frozen(self) -> int:
        """Blocks whose weights do not change (adapters on them may train)."""
        return self.num_blocks - self.num_active

    @property
    def num_prefix(self) -> int:
        """Depth of the prefix: the frozen blocks below all that train."""
        return self.active_blocks.start

    def place_of(self, parent_block: int) -> int:
        """Where a block of the parent is in this stage's model."""
        return parent_block if parent_block < self.position else parent_block + self.add


def resolve(plan: PlanConfig, *, num_stages_before: int = 0, num_blocks_before: int = 0) -> tuple[Stage, ...]:
    """All stages of a plan with every default filled in.

    Args:
        num_stages_before, num_blocks_before: of the lineage that the plan continues, if it does.

    A control gets the plan's tokens here; for one of equal FLOPs, which depend on the shape, see `scaling.py`.

    Raises:
        ConfigError: naming the stage and the invalid key.
    """
    stages: list[Stage] = []
    for index, config in enumerate(plan.stage_configs(), start=num_stages_before + 1):
        before = stages[-1].num_blocks if stages else num_blocks_before
        stages.append(_resolve_stage(plan, index, config, before))
    resolved = _monolithic(stages) if plan.mode == "monolithic" else tuple(stages)
    return _with_spans(resolved) if plan.schedule == "plan" else resolved


def _with_spans(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with their places in a schedule over all of them.

    Raises:
        ConfigError: their lengths are not known in advance, or not in one unit.
    """
    if any(stage.train.seconds or stage.train.convergence for stage in stages):
        raise ConfigError(
            "plan.schedule=plan: a stage ends by seconds or convergence, so that the end of the plan is not known",
            "Limit every stage by train.tokens or train.steps, or set plan.schedule=per_stage",
        )
    _, lengths = _lengths(stages, "plan.schedule=plan")
    ends = [sum(lengths[: number + 1]) / sum(lengths) for number in range(len(stages))]
    spans = zip([0.0, *ends[:-1]], ends, strict=True)
    return tuple(stage.model_copy(update={"span": span}) for stage, span in zip(stages, spans, strict=True))


def _lengths(stages: Sequence[Stage], key: str) -> tuple[str, list[int]]:
    """The lengths of all stages, and what they are counted in.

    Raises:
        ConfigError: not all are limited by the same.
    """
    limits = {kind: [getattr(stage.train, kind) for stage in stages] for kind in ("tokens", "steps", "seconds")}
    used = [kind for kind, values in limits.items() if any(value is not None for value in values)]
    if len(used) > 1:
        raise ConfigError(
            f"{key}: the stages are limited by {' and '.join(used)}, which do not add up to one length",
            "Limit every stage by train.tokens alone, or every stage by train.steps alone",
        )
    return used[0], limits[used[0]]


def _resolve_stage(plan: PlanConfig, index: int, config: StageConfig, before: int) -> Stage:
    where = f"plan, stage {index}"
    depth = before + config.add
    insert = config.insert or plan.insert
    active = config.add if config.active is None else min(config.active, depth)
    if plan.unfreeze:
        _check_unfrozen(where, config)
        active = depth
    if depth == 0:
        raise ConfigError(f"{where}: add=0: the first stage adds no block", "Let it add at least one")
    if active < config.add:
        raise ConfigError(
            f"{where}: active={config.active}: fewer than the {config.add} blocks added would train",
            f"Set active to at least {config.add}, or leave it out",
        )
    if insert == "middle" and config.lora is not None:
        raise ConfigError(f"{where}: insert=middle: adapters would lie on both sides of the new blocks", "Remove lora")
    if insert == "middle" and config.add < active < depth:
        raise ConfigError(
            f"{where}: insert=middle: active={active}: which blocks besides the {config.add} new ones would train is "
            "not clear",
            "Leave active out, set plan.unfreeze=true, or plan.insert=top",
        )
    if config.lora is not None and active == depth:
        raise ConfigError(f"{where}: lora: no frozen block to adapt at depth {depth}", "Remove lora, or lower active")
    if not (active or config.head or config.lora or config.train_substrate):
        raise ConfigError(f"{where}: nothing would train", "Set head: true, active or lora")
    return Stage(
        index=index,
        name=config.name or (f"depth-{depth}" if config.add else f"tune-{depth}"),
        num_blocks_before=before,
        add=config.add,
        num_active=active,
        head=config.head,
        train_substrate=config.train_substrate,
        init=config.init or plan.init,
        insert=insert,
        lora=config.lora,
        data=config.data,
        num_workers=config.num_workers,
        train=build_config(StageTraining, {**plan.train, **config.train}),
        decay=plan.decay,
        parametrization=plan.parametrization,
    )


def _check_unfrozen(where: str, config: StageConfig) -> None:
    if config.active is not None or config.lora is not None:
        key = "active" if config.active is not None else "lora"
        raise ConfigError(
            f"{where}: {key}: plan.unfreeze=true trains all blocks anyway", f"Remove {key}, or set plan.unfreeze=false"
        )


def _monolithic(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The control: the same final shape, trained end to end on as many tokens as all stages together."""
    unit, lengths = _lengths(stages, "plan.mode=monolithic")
    train = stages[0].train.model_copy(update={unit: sum(lengths)})
    return (monolithic_stage(stages[0], stages[-1].num_blocks).model_copy(update={"train": train}),)


def monolithic_stage(first: Stage, num_blocks: int) -> Stage:
    """The one stage of a control: it trains as `first` does, but all of `num_blocks` blocks and the head at once."""
    return first.model_copy(
        update={
            "name": "monolithic",
            "add": num_blocks - first.num_blocks_before,
            "num_active": num_blocks,
            "head": True,
            "init": "random",
            "insert": "top",
            "lora": None,
            "data": None,
        }
    )
