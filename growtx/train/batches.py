"""A worker's share of a step's windows, as tensors on its device.

Shapes: B global batch, b a worker's share, m micro batch, T positions, N windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from growtx.data.packing import Mix, PackedData, window_indices
from growtx.generator import turns_after
from growtx.models.loss import labels_of
from growtx.train.prefix_cache import PrefixCache


class Batches:
    """Training windows as a pure function of the position in the run.

    Args:
        num_samples_before: windows that earlier stages have drawn.
        mix: to sample from; None: all sources by their weights.
        turns_before: windows of each source that earlier stages have drawn, where one of them had another mix;
            `num_samples_before` is then 0.
    """

    def __init__(
        self,
        data: PackedData,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        num_samples_before: int,
        rank: int,
        world_size: int,
        device: torch.device,
        mix: Mix | None = None,
        turns_before: Sequence[int] = (),
    ) -> None:
        self.data = data
        self.mix = data.mix if mix is None else mix
        self._turns_before = turns_before
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._num_samples_before = num_samples_before
        self._rank = rank
        self._share = global_batch_size // world_size
        self._prefix: PrefixCache | None = None
        self._first_block = 0
        self._device = device

    def read_prefix_from(self, cache: PrefixCache, first_block: int) -> None:
        """From now on give cached states that enter block `first_block`, instead of tokens."""
        self._prefix, self._first_block = cache, first_block

    @property
    def reads_prefix(self) -> bool:
        return self._prefix is not None

    def windows(self, step: int) -> np.ndarray:
        """Indices [B] of all workers' windows of step `step`."""
        return window_indices(
            self.mix,
            seed=self._seed,
            step=step,
            global_batch_size=self._global_batch_size,
            num_samples_before=self._num_samples_before,
            turns_before=self._turns_before,
        )

    def drawn(self, num_steps: int) -> list[int]:
        """How many windows of each source the first `num_steps` steps draw, repeated ones counted."""
        before, after = self._num_samples_before, self._num_samples_before + num_steps * self._global_batch_size
        pairs = zip(turns_after(before, self.mix.weights), turns_after(after, self.mix.weights), strict=True)
        return [late - early for early, late in pairs]

    def windows_visited(self, num_steps: int) -> np.ndarray:
        """Indices [N] of the windows that the first `num_steps` steps train on, each once."""
        return np.unique(np.concatenate([self.windows(step) for step in range(num_steps)]))

    def least_visited(self, num_steps: int) -> int:
        """How many windows the first `num_steps` steps train on at least: known at once, without listing them.

        A source gives its share; half of that may come again, where one round through it follows another.
        """
        drawn, mix = num_steps * self._global_batch_size, self.mix
        return sum(
            min(size, max(0, int(share * drawn / 2) - 1))
            for size, share in zip(mix.num_windows, mix.shares, strict=True)
        )

    def at(self, step: int) -> list[dict[str, Any]]:
        """This worker's micro batches of step `step`, as keyword arguments of the model."""
        if self.data.train.is_fetched:
            self.data.train.prefetch(self._mine(step + self._steps_ahead))
        mine_b = self._mine(step)
        return [
            self._batch(mine_b[start : start + self._micro_batch_size])
            for start in range(0, self._share, self._micro_batch_size)
        ]

    def _mine(self, step: int) -> np.ndarray:
        return self.windows(step)[self._rank * self._share : (self._rank + 1) * self._share]

    @property
    def _steps_ahead(self) -> int:
        """How many steps take as many windows as a shard has: time to fetch the next ones."""
        return max(1, max(map(max, self.mix.shard_sizes)) // self._global_batch_size)

    def _batch(self, windows_m: np.ndarray) -> dict[str, Any]:
        tokens_mT = torch.from_numpy(self.data.train.take(windows_m)).long().to(self._device, non_blocking=True)
        batch: dict[str, Any] = {"labels": labels_of(tokens_mT, self.data.pad_token_id)}
        if self._prefix is None:
            return batch | {"input_ids": tokens_mT}
        states_mTD = self._prefix.read(windows_m).to(self._device, non_blocking=True)
        # The tokens are not read again, unless blocks add the substrate's vectors to the states.
        return batch | {"input_ids": tokens_mT, "prefix_hidden_states": states_mTD, "first_block": self._first_block}
