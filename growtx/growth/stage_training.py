"""How a stage trains: its batch, learning rates and schedule, and what ends it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from growtx.config import ConfigModel


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

    @model_validator(mode="after")
    def _has_an_end(self) -> StageTraining:
        if self.tokens is None and self.steps is None:
            raise ValueError(
                "a stage needs an upper limit: set train.tokens or train.steps (seconds, convergence end it sooner)"
            )
        return self

    def num_steps(self, tokens_per_step: int) -> int:
        """Optimizer steps of the whole stage, unless time or convergence end it sooner."""
        limits = [self.steps] if self.steps else []
        if self.tokens:
            limits.append(max(1, round(self.tokens / tokens_per_step)))
        return min(limits)
