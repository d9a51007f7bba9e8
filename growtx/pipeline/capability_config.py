"""The block `capability`: what is measured when a run has ended, and the controls that stand beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from growtx.config import ConfigModel
from growtx.exceptions import ConfigError
from growtx.growth.plan import BudgetConfig, PlanConfig, resolve

if TYPE_CHECKING:
    from growtx.evaluate.evaluation import BenchmarkConfig

Controls = Literal["none", "last", "all"]


class CapabilityConfig(ConfigModel):
    """The block `capability`: what is measured when a run has ended."""

    tasks: tuple[str, ...] = Field((), description="tasks to score at every depth; empty: none")
    data_dir: str | None = Field(None, description="directory of the JSON lines that growtx's own tasks read")
    limit: int | None = Field(None, ge=1, description="questions per task; null: all")
    protocols: tuple[Literal["log-likelihood", "sampled letter"], ...] = ("log-likelihood",)
    controls: Controls = Field(
        "none", description="monolithic models to train beside, of equal FLOPs: of the final depth, or of every depth"
    )

    def benchmark(self) -> BenchmarkConfig:
        """The same as rayjobs/evaluate.py would be told."""
        from growtx.evaluate.evaluation import BenchmarkConfig

        return BenchmarkConfig(tasks=self.tasks, data_dir=self.data_dir, limit=self.limit, protocols=self.protocols)

    def check(self) -> None:
        """Before anything is trained.

        Raises:
            ConfigError: a task does not exist, what scores it is not installed, or controls would be measured on none.
        """
        if self.tasks:
            from growtx.evaluate.evaluation import resolve_tasks

            resolve_tasks(self.benchmark())
        elif self.controls != "none":
            raise ConfigError(f"capability.controls={self.controls} without tasks", "Set capability.tasks too")


def control_plans(plan: PlanConfig, which: Controls) -> dict[int, PlanConfig]:
    """Plans of the controls by depth: monolithic, with the FLOPs that the grown model took to reach that depth.

    The first stage needs none where it trains all there is: grown and monolithic are the same there.

    Raises:
        ConfigError: the plan's own FLOPs are not known in advance, or it is monolithic itself.
    """
    if which == "none":
        return {}
    stages, written = resolve(plan), plan.written_stages()
    if plan.mode == "monolithic" or any(stage.train.seconds or stage.train.convergence for stage in stages):
        raise ConfigError(
            f"capability.controls={which}: the plan is monolithic itself, or a stage ends by seconds or convergence",
            "Set capability.controls=none, or limit every stage by train.tokens or train.steps",
        )
    ends = {stage.num_blocks: index for index, stage in enumerate(stages, start=1)}  # the last stage of each depth
    depths = [depth for depth, index in ends.items() if index > 1]
    shared = {"mode": "monolithic", "match": "flops", "grow": None, "budget": BudgetConfig()}
    return {
        depth: plan.model_copy(update={**shared, "stages": written[: ends[depth]]})
        for depth in (depths if which == "all" else depths[-1:])
    }
