"""One actor between the trials of a sweep and their workers: evaluations go up, decisions come down.

A worker that has evaluated waits here until its trial was asked for more or was stopped, so a stopped trial trains
no step beyond the evaluation that it was stopped for.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray

from growtx.train.progress import StageProgress

POLL_SECONDS = 1.0


@ray.remote(num_cpus=0)
class TrialBoard:
    """Progress, evaluations and stop requests of all trials, by number."""

    def __init__(self) -> None:
        self._progress: dict[int, StageProgress] = {}
        self._evaluations: dict[int, asyncio.Queue[StageProgress]] = {}
        self._go_on: dict[int, asyncio.Event] = {}
        self._stop: set[int] = set()
        self._stop_all = False
        self._failures: dict[int, str] = {}
        self._warnings: list[str] = []

    async def open(self, trial: int) -> None:
        """Forget what an earlier attempt of the trial left."""
        self._progress[trial] = StageProgress()
        self._evaluations[trial], self._go_on[trial] = asyncio.Queue(), asyncio.Event()
        self._stop.discard(trial)

    async def post(self, trial: int, progress: StageProgress) -> bool:
        """Called by a trial's rank 0; returns whether to stop. Answers an evaluation when it was decided about."""
        self._progress[trial] = progress
        if progress.evaluated and not self._must_stop(trial):
            self._go_on[trial].clear()
            self._evaluations[trial].put_nowait(progress)
            await self._go_on[trial].wait()
        return self._must_stop(trial)

    def _must_stop(self, trial: int) -> bool:
        return self._stop_all or trial in self._stop

    async def next_evaluation(self, trial: int) -> StageProgress | None:
        """Let the trial go on, and wait a little for its next evaluation."""
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
class _Bound:
    method: Any
    trial: int

    def remote(self, *args: Any) -> Any:
        return self.method.remote(self.trial, *args)


@dataclass(frozen=True)
class Seat:
    """A trial's place at the board: what workers take for a board of their own."""

    board: Any
    trial: int

    @property
    def post(self) -> _Bound:
        return _Bound(self.board.post, self.trial)

    @property
    def warn(self) -> _Bound:
        return _Bound(self.board.warn, self.trial)
