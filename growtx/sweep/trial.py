"""One trial under Ray Tune: a stage trained by Ray Train and DeepSpeed on workers of its own.

The trial's own process reserves no CPU, because its workers need it: trials that held one while their workers wait for
one would wait forever. It reserves the memory of a small process instead, which every node of every cluster has.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import tune

from growtx.exceptions import GrowtxError
from growtx.growth.flops import check_budget
from growtx.growth.plan import PlanConfig, Stage, resolve
from growtx.storage import Storage
from growtx.store.manifest import latest_manifest
from growtx.store.trials import trial_dir
from growtx.sweep.search import METRIC, Values, stage_with_values
from growtx.train.job import TrainJob
from growtx.train.progress import StageProgress, insist
from growtx.train.stage_trainer import fit_worker_group
from growtx.train.worker import GroupOutcome

# One actor between the trials of a sweep and their workers: evaluations go up, decisions come down.
#
# A worker that has evaluated waits here until its trial was asked for more or was stopped, so a stopped trial trains
# no step beyond the evaluation that it was stopped for.


POLL_SECONDS = TELL_EVERY_SECONDS = 1.0


class TrialCoordinator:
    """Progress, evaluations and stop requests of all trials, by number.

    Started anew, it knows no trial: those that run are met when they report.
    """

    def __init__(self) -> None:
        self._progress: dict[int, StageProgress] = {}
        self._evaluations: defaultdict[int, asyncio.Queue[StageProgress]] = defaultdict(asyncio.Queue)
        self._go_on: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._stop: set[int] = set()
        self._stop_all = False
        self._failures: dict[int, str] = {}
        self._warnings: list[str] = []

    async def open(self, trial: int) -> None:
        """Forget what an earlier attempt of the trial left."""
        self._progress[trial] = StageProgress()
        self._evaluations[trial], self._go_on[trial] = asyncio.Queue(), asyncio.Event()
        self._stop.discard(trial)

    async def report(self, trial: int, progress: StageProgress) -> bool:
        """Called by a trial's rank 0; returns whether to stop. Answers an evaluation once that is decided."""
        self._progress[trial] = progress
        if progress.evaluated and not self._must_stop(trial):
            self._go_on[trial].clear()
            self._evaluations[trial].put_nowait(progress)
            await self._go_on[trial].wait()
        return self._must_stop(trial)

    def _must_stop(self, trial: int) -> bool:
        return self._stop_all or trial in self._stop

    async def next_evaluation(self, trial: int) -> StageProgress | None:
        """Let the trial continue, and wait briefly for its next evaluation."""
        if self._evaluations[trial].empty():
            self._go_on[trial].set()
        try:
            return await asyncio.wait_for(self._evaluations[trial].get(), POLL_SECONDS)
        except TimeoutError:
            return None

    async def request_stop(self, trial: int | None = None) -> None:
        """Ask one trial, or all, to stop."""
        if trial is None:
            self._stop_all = True
        else:
            self._stop.add(trial)
        for number, event in self._go_on.items():
            if self._must_stop(number):
                event.set()

    async def is_stopping(self, trial: int) -> bool:
        """What a trial's workers ask that have no progress to report."""
        return self._must_stop(trial)

    async def fail(self, trial: int, sentence: str) -> None:
        """Remember why a trial failed: Tune's callback is not told."""
        self._failures[trial] = sentence

    async def failure(self, trial: int) -> str | None:
        return self._failures.get(trial)

    async def warn(self, trial: int, message: str) -> None:
        self._warnings.append(f"trial {trial:03d}: {message}")

    async def read(self) -> tuple[dict[int, StageProgress], list[str]]:
        """Where every trial is, and the warnings since the last call."""
        warnings, self._warnings = self._warnings, []
        return dict(self._progress), warnings


@dataclass(frozen=True)
class _BoundMethod:
    method: Any
    trial: int

    def remote(self, *args: Any) -> Any:
        return self.method.remote(self.trial, *args)


@dataclass(frozen=True)
class TrialHandle:
    """A trial's end of the coordinator, which its workers report to as other workers do to a progress actor."""

    coordinator: Any
    trial: int

    @property
    def report(self) -> _BoundMethod:
        return _BoundMethod(self.coordinator.report, self.trial)

    @property
    def is_stopping(self) -> _BoundMethod:
        return _BoundMethod(self.coordinator.is_stopping, self.trial)

    @property
    def warn(self) -> _BoundMethod:
        return _BoundMethod(self.coordinator.warn, self.trial)


TRIAL_MEMORY_BYTES = 256 * 2**20
STOP_SECONDS = 60.0  # a worker stops after its current step
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
            ConfigError, BudgetError: they cannot be used.
        """
        written = list(self.plan.stage_configs())
        written[self.position] = stage_with_values(written[self.position], values)
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

    def setup(self, config: dict[str, Any], *, search: StageSearch, coordinator: Any) -> None:
        """Nothing begins here: Tune may give the trial to another process while this one is still starting."""
        self._search, self._coordinator = search, coordinator
        self._await_first_step(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in this process, which saves the seconds that a new one takes to start."""
        self.cleanup()
        self._await_first_step(new_config)
        return True

    def _await_first_step(self, config: dict[str, Any]) -> None:
        self._number: int = config["number"]
        self._values: Values = config["values"]
        self._training: Future[GroupOutcome] | None = None

    def _begin(self) -> Future[GroupOutcome]:
        self._started = time.monotonic()
        insist(lambda: self._coordinator.open.remote(self._number))
        return ThreadPoolExecutor(1).submit(self._train)

    def _train(self) -> GroupOutcome:
        self._job = self._search.trial_job(self._number, self._values)
        outcome = fit_worker_group([self._job], TrialHandle(self._coordinator, self._number))
        for error in outcome.failed.values():
            raise error
        return outcome

    def step(self) -> dict[str, Any]:
        self._training = self._training or self._begin()
        while not self._training.done():
            evaluation = insist(lambda: self._coordinator.next_evaluation.remote(self._number))
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
            insist(lambda: self._coordinator.fail.remote(self._number, sentence))
            raise

    def _result(self) -> dict[str, Any]:
        """The results of the finalized stage."""
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
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            self._coordinator.request_stop.remote(self._number)  # again: whoever was told may have been started anew
            with suppress(Exception):
                self._training.result(timeout=TELL_EVERY_SECONDS)
            if self._training.done() or time.monotonic() >= deadline:
                return
