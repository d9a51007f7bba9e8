"""A worker's share of a step's windows, as tensors on its device.

Shapes: B global batch, b a worker's share, m micro batch, T positions, N windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from growtx.config import fingerprint
from growtx.data.packing import Mix, PackedData, window_indices, windows_drawn
from growtx.generator import turns_after
from growtx.models.loss import IGNORE_INDEX, labels_of
from growtx.train.prefix_cache import PrefixCache
from growtx.train.settings import num_micro_batches

# Indices [b] of a worker's windows, and how many of them there are to learn from; the rest fills the last micro batch.
Share = tuple[np.ndarray, int]


class Batches:
    """Training windows as a pure function of the position in the run.

    A batch that does not split over the workers is filled up with windows that have no labels, so that all of them do
    the same number of equal micro batches. The next micro batch is read while a step computes on the one before it.

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
        self._num_micro = num_micro_batches(global_batch_size, micro_batch_size, world_size)
        self._share = self._num_micro * micro_batch_size
        self._prefix: PrefixCache | None = None
        self._first_block = 0
        self._device = device
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reads-batches")
        self._ahead: tuple[tuple[int, int], Future[dict[str, Any]]] | None = None

    def close(self) -> None:
        """End the thread that reads."""
        self._reader.shutdown(cancel_futures=True)

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

    def visiting_order(self, num_steps: int, *, multiple: int = 1) -> np.ndarray:
        """Indices [N] of the windows that the first `num_steps` steps train on, each once, as they first come.

        Args:
            multiple: N is filled up to one, by the windows that would come next, as long as there are any soon.
        """
        num_samples = num_steps * self._global_batch_size
        drawn = windows_drawn(
            self.mix,
            seed=self._seed,
            start=self._num_samples_before,
            count=num_samples + 4 * multiple,
            turns_before=self._turns_before,
        )
        first_N = np.sort(np.unique(drawn, return_index=True)[1])
        num_visited = int(np.searchsorted(first_N, num_samples))
        return drawn[first_N[: -(-num_visited // multiple) * multiple]]

    @property
    def order_fingerprint(self) -> str:
        """Equal where windows come in the same order, in batches of whatever size."""
        mix = self.mix
        before = [self._num_samples_before, *self._turns_before]
        return fingerprint([self._seed, mix.num_windows, mix.weights, mix.shard_sizes, before])

    def least_visited(self, num_steps: int) -> int:
        """How many windows the first `num_steps` steps train on at least: known at once, without listing them.

        A source gives its share; half of that may come again, where one round through it follows another.
        """
        drawn, mix = num_steps * self._global_batch_size, self.mix
        return sum(
            min(size, max(0, int(share * drawn / 2) - 1))
            for size, share in zip(mix.num_windows, mix.shares, strict=True)
        )

    def at(self, step: int, *, is_last: bool = False) -> Iterator[dict[str, Any]]:
        """This worker's micro batches of step `step`, as keyword arguments of the model, one after the other.

        Args:
            is_last: whether no step follows, so that nothing is read ahead.
        """
        if self.data.train.is_fetched:
            windows_b, num_real = self._mine(step + self._steps_ahead)
            self.data.train.prefetch(windows_b[:num_real])
        mine = self._mine(step)
        for index in range(self._num_micro):
            batch = self._take(step, index, mine)
            if index + 1 < self._num_micro:
                self._read_ahead(step, index + 1, mine)
            elif not is_last:
                self._read_ahead(step + 1, 0)
            yield {
                name: value.to(self._device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }

    def _take(self, step: int, index: int, mine: Share) -> dict[str, Any]:
        """A micro batch on the host; that of the read ahead, if it is the one."""
        ahead, self._ahead = self._ahead, None
        return ahead[1].result() if ahead and ahead[0] == (step, index) else self._read(step, index, mine)

    def _read_ahead(self, step: int, index: int, mine: Share | None = None) -> None:
        self._ahead = (step, index), self._reader.submit(self._read, step, index, mine)

    def _read(self, step: int, index: int, mine: Share | None) -> dict[str, Any]:
        """A micro batch; where the windows of the step are not known yet, they are found here, in the other thread."""
        windows_b, num_real = mine or self._mine(step)
        first, size = index * self._micro_batch_size, self._micro_batch_size
        batch = self._batch(windows_b[first : first + size], num_real - first)
        if self._device.type == "cuda":  # only from such memory are copies made while the GPU computes
            return {k: value.pin_memory() if isinstance(value, torch.Tensor) else value for k, value in batch.items()}
        return batch

    def _mine(self, step: int) -> Share:
        windows_B = self.windows(step)
        mine = windows_B[self._rank * self._share : (self._rank + 1) * self._share]
        return np.pad(mine, (0, self._share - len(mine)), constant_values=windows_B[0]), len(mine)

    @property
    def _steps_ahead(self) -> int:
        """How many steps take as many windows as a shard has: time to fetch the next ones."""
        return max(1, max(map(max, self.mix.shard_sizes)) // self._global_batch_size)

    def _batch(self, windows_m: np.ndarray, num_real: int) -> dict[str, Any]:
        """Windows as tensors on the host; those after the first `num_real` have no labels."""
        tokens_mT = torch.from_numpy(self.data.train.take(windows_m)).long()
        labels_mT = labels_of(tokens_mT, self.data.pad_token_id)
        if num_real < len(windows_m):
            labels_mT = labels_mT.clone()
            labels_mT[max(0, num_real) :] = IGNORE_INDEX
        batch: dict[str, Any] = {"labels": labels_mT, "input_ids": tokens_mT}
        if self._prefix is None:
            return batch
        # The tokens are not read again, unless blocks add the substrate's vectors to the states.
        return batch | {"prefix_hidden_states": self._prefix.read(windows_m), "first_block": self._first_block}
