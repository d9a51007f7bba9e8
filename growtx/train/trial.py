"""One trial under Ray Tune: a stage trained by Ray Train and DeepSpeed on workers of its own.

The trial's own process holds no CPU, which its workers need: trials that held one while their workers wait for one
would wait for ever. It asks for the memory of a small process instead, which every node of every cluster offers.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from growtx.exceptions import GrowtxError
from growtx.growth.budget import check_budget
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.growth.search_space import Values, changed_stage
from growtx.store.manifest import latest_manifest
from growtx.store.storage import Storage
from growtx.store.trials import trial_dir
from growtx.train.job import TrainJob
from growtx.train.stage_trainer import Outcome, train_group
from growtx.train.trial_board import Seat
from growtx.train.trial_search import METRIC

TRIAL_MEMORY_BYTES = 256 * 2**20
STOP_SECONDS = 60.0  # a worker leaves after the step it is in
FRACTION = "fraction"


@dataclass(frozen=True)
class StageSearch:
    """A stage to be searched.

    Attributes:
        job: of the whole sweep; its run directory holds parents, blobs and tokenizer.
        plan: whose stage at `position` (from 0) is searched, after `num_stages_before` of a lineage before it.
        evaluate_every: share of a stage between evaluations, or None for none in between.
    """

    job: TrainJob
    plan: PlanConfig
    position: int
    num_trials: int
    evaluate_every: float | None
    num_stages_before: int = 0
    num_blocks_before: int = 0

    def stage(self, values: Values) -> Stage:
        """The stage with the values of a trial.

        Raises:
            ConfigError, BudgetError: they cannot be.
        """
        written = list(self.plan.written_stages())
        written[self.position] = changed_stage(written[self.position], values)
        plan = self.plan.model_copy(update={"grow": None, "stages": tuple(written)})
        stages = resolve(plan, num_stages_before=self.num_stages_before, num_blocks_before=self.num_blocks_before)
        stage = stages[self.position]
        check_budget(self.job.model_at(stage.num_blocks), [stage], self.plan.budget)
        return stage

    def trial_job(self, number: int, values: Values) -> TrainJob:
        """A run of its own in the sweep's directory, on the sweep's blobs, packed data and prefix cache."""
        stage = self.stage(values)
        training = self.job.training
        if training.evaluation.every_steps is None and self.evaluate_every is not None:
            every = math.ceil(stage.train.num_steps(self.job.tokens_per_step(stage)) * self.evaluate_every)
            evaluation = training.evaluation.model_copy(update={"every_steps": every})
            training = training.model_copy(update={"evaluation": evaluation})
        root = self.job.run_dir
        return self.job.model_copy(
            update={
                "run_dir": f"{root}/{trial_dir(stage.index, number)}",
                "shared_dir": root,
                "num_trials": self.num_trials,
                "stages": (stage,),
                "training": training,
                "resources": self.job.resources_of(stage),
            }
        )


class Trial(tune.Trainable):
    """Reports held-out bits per byte whenever its workers evaluate, and at the end."""

    def setup(self, config: dict[str, Any], *, search: StageSearch, board: Any) -> None:
        """Nothing begins here: Tune may give the trial to another process while this one still starts."""
        self._search, self._board = search, board
        self._await_first_step(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in this process, which spares the seconds that one takes to start."""
        self.cleanup()
        self._await_first_step(new_config)
        return True

    def _await_first_step(self, config: dict[str, Any]) -> None:
        self._number: int = config["number"]
        self._values: Values = config["values"]
        self._training: Future[Outcome] | None = None

    def _begin(self) -> Future[Outcome]:
        self._started = time.monotonic()
        ray.get(self._board.open.remote(self._number))
        return ThreadPoolExecutor(1).submit(self._train)

    def _train(self) -> Outcome:
        self._job = self._search.trial_job(self._number, self._values)
        outcome = train_group([self._job], Seat(self._board, self._number))
        for error in outcome.failed.values():
            raise error
        return outcome

    def step(self) -> dict[str, Any]:
        self._training = self._training or self._begin()
        while not self._training.done():
            evaluation = ray.get(self._board.next_evaluation.remote(self._number))
            if evaluation is not None:
                stage = self._job.stages[0]
                return {
                    METRIC: evaluation.bits_per_byte,
                    FRACTION: evaluation.fraction,
                    "num_tokens": round(evaluation.fraction * self._job.num_tokens(stage)),
                    "seconds": evaluation.seconds,
                    "prefix_cached": evaluation.prefix_cached,
                    **self._common(),
                }
        try:
            if self._training.result().stopped:
                return {METRIC: math.nan, "ended": "stopped", "done": True}  # Tune wants the metric in every result
            return self._result()
        except Exception as error:
            sentence = str(error) if isinstance(error, GrowtxError) else f"{type(error).__name__}: {error}"
            ray.get(self._board.fail.remote(self._number, sentence))
            raise

    def _result(self) -> dict[str, Any]:
        """What the sealed stage says."""
        manifest = latest_manifest(Storage(self._job.run_dir))
        assert manifest is not None
        stage = self._job.stages[0]
        return {
            METRIC: manifest.metrics["eval/bits_per_byte"],
            FRACTION: 1.0,
            "num_tokens": manifest.metrics["steps"] * self._job.tokens_per_step(stage),
            "seconds": manifest.metrics["seconds"],
            "prefix_cached": manifest.metrics["prefix_cached"],
            "ended": "finished",
            "done": True,
            **self._common(),
        }

    def _common(self) -> dict[str, Any]:
        return {"total_seconds": time.monotonic() - self._started}

    def cleanup(self) -> None:
        """End the workers before this process ends; what they raised was reported by `step`."""
        if self._training is None:
            return
        self._board.request_stop.remote(self._number)
        with suppress(Exception):
            self._training.result(timeout=STOP_SECONDS)
