"""Learning rate as a pure function of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from growtx.growth.stage_training import StageTraining


def learning_rate_factor(train: StageTraining, step: int, num_steps: int) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 0) of `num_steps`.

    Linear warm-up over `train.warmup` of the steps, then `train.schedule` down to `train.final_learning_rate`.
    """
    num_warmup = round(train.warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    if train.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    remaining = 1.0 - progress if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return train.final_learning_rate + (1.0 - train.final_learning_rate) * remaining
