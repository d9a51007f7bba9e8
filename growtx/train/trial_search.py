"""Which values a trial has: random, a grid, or the tree-structured Parzen estimator; resumable from records.

Random and grid values are pure functions of seed and number, so a resumed sweep has the trials it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from ray.tune.search import Searcher

from growtx.exceptions import ConfigError
from growtx.growth.search_space import Dimension, RangeConfig, Values, draw, grid, rounded
from growtx.store.trials import TrialRecord

METRIC = "bits_per_byte"
Sampler = Literal["random", "tpe", "grid"]


class Proposer(Protocol):
    """Gives trials their values, and may learn from their results."""

    def propose(self, number: int) -> Values: ...

    def observe(self, number: int, values: Values, bits_per_byte: float) -> None: ...


class RandomProposer:
    """Independent draws."""

    def __init__(self, dimensions: Mapping[str, Dimension], seed: Sequence[int]) -> None:
        self._dimensions, self._seed = dimensions, seed

    def propose(self, number: int) -> Values:
        random = np.random.default_rng([*self._seed, number])
        return {key: draw(dimension, random) for key, dimension in self._dimensions.items()}

    def observe(self, number: int, values: Values, bits_per_byte: float) -> None:
        """Draws do not depend on results."""


class GridProposer:
    """Every combination once."""

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self._all = list(grid(dimensions))

    def __len__(self) -> int:
        return len(self._all)

    def propose(self, number: int) -> Values:
        return self._all[number]

    def observe(self, number: int, values: Values, bits_per_byte: float) -> None:
        """The grid is fixed."""


class TpeProposer:
    """Optuna's TPE (Bergstra et al., NeurIPS 2011); a third of the trials, at least three, are random first."""

    def __init__(self, dimensions: Mapping[str, Dimension], seed: Sequence[int], num_trials: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "sweep.sampler=tpe needs the package optuna", "pip install 'growtx[sweep]', or use random or grid"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._dimensions = optuna, dimensions
        self._num_random = max(3, num_trials // 3)
        self._seed = seed
        self._study = optuna.create_study(direction="minimize")
        self._distributions: dict[str, Any] = {
            key: optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
            if isinstance(dimension, RangeConfig)
            else optuna.distributions.CategoricalDistribution(range(len(dimension)))
            for key, dimension in dimensions.items()
        }
        self._asked: dict[int, Any] = {}

    def propose(self, number: int) -> Values:
        seed = int(np.random.default_rng([*self._seed, number]).integers(2**31))
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._num_random)
        trial = self._asked[number] = self._study.ask(self._distributions)
        return {
            key: rounded(trial.params[key]) if isinstance(dimension, RangeConfig) else dimension[trial.params[key]]
            for key, dimension in self._dimensions.items()
        }

    def observe(self, number: int, values: Values, bits_per_byte: float) -> None:
        if number in self._asked:
            self._study.tell(self._asked.pop(number), bits_per_byte)
            return
        parameters = self._parameters(values)
        if parameters is not None:
            trial = self._optuna.trial.create_trial(
                params=parameters, distributions=self._distributions, value=bits_per_byte
            )
            self._study.add_trial(trial)

    def _parameters(self, values: Values) -> dict[str, Any] | None:
        """Values as Optuna has them; None where one lies outside of the space, as a plan's own may."""
        parameters: dict[str, Any] = {}
        for key, dimension in self._dimensions.items():
            value = values[key]
            if isinstance(dimension, RangeConfig):
                if not dimension.low <= value <= dimension.high:
                    return None
                parameters[key] = value
            else:
                choices = [list(c) if isinstance(c, tuple) else c for c in dimension]
                plain = list(value) if isinstance(value, tuple) else value
                if plain not in choices:
                    return None
                parameters[key] = choices.index(plain)
        return parameters


class RecordedSearch(Searcher):
    """Tune's searcher over what is recorded: unfinished trials first, then new ones up to `num_trials`.

    Args:
        records: trials that were begun before.
        planned: values of the first trial, or None to draw all.
    """

    def __init__(
        self, proposer: Proposer, records: Sequence[TrialRecord], *, num_trials: int, planned: Values | None
    ) -> None:
        super().__init__(metric=METRIC, mode="min")
        self._proposer, self._planned = proposer, planned
        self._todo = [record for record in records if record.state == "running"]
        self._new = [n for n in range(num_trials) if n not in {record.number for record in records}]
        self._running: dict[str, tuple[int, Values]] = {}
        self.is_stopping = False
        for record in records:
            if record.state in ("finished", "stopped") and record.bits_per_byte is not None:
                proposer.observe(record.number, record.values, record.bits_per_byte)

    @property
    def num_left(self) -> int:
        return len(self._todo) + len(self._new)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self.is_stopping or not self.num_left:
            return str(Searcher.FINISHED)
        if self._todo:
            record = self._todo.pop(0)
            number, values, planned = record.number, record.values, record.planned
        else:
            number = self._new.pop(0)
            planned = number == 0 and self._planned is not None
            values = dict(self._planned or {}) if planned else self._propose(number)
        self._running[trial_id] = (number, values)
        return {"number": number, "values": values, "planned": planned}

    def _propose(self, number: int) -> Values:
        return self._proposer.propose(number if self._planned is None else number - 1)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Only ends are learnt from."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, values = self._running.pop(trial_id)
        if result is not None and not error and math.isfinite(result.get(METRIC, math.nan)):
            number -= 0 if self._planned is None else 1
            self._proposer.observe(number, values, result[METRIC])

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file; the state of the search is in the trials' own records."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for: a sweep is resumed from its records."""
        raise NotImplementedError


def make_proposer(
    sampler: Sampler, dimensions: Mapping[str, Dimension], *, seed: int, stage: int, num_trials: int
) -> Proposer:
    """The proposer of a stage.

    Raises:
        ConfigError: the sampler cannot work on these dimensions, or its package is missing.
    """
    if sampler == "grid":
        return GridProposer(dimensions)
    if sampler == "tpe":
        return TpeProposer(dimensions, (seed, stage), num_trials)
    return RandomProposer(dimensions, (seed, stage))
