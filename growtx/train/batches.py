"""A worker's share of a step's windows, as tensors on its device.

Shapes: B global batch, b a worker's share, m micro batch, T positions.
"""

from __future__ import annotations

from typing import Any

import torch

from growtx.data.packing import PackedData
from growtx.data.sampling import window_indices
from growtx.models.scoring import labels_of


class Batches:
    """Training windows as a pure function of the position in the run.

    Args:
        num_samples_before: windows that earlier stages have drawn.
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
    ) -> None:
        self._data = data
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._num_samples_before = num_samples_before
        self._rank = rank
        self._share = global_batch_size // world_size
        self._device = device

    def at(self, step: int) -> list[dict[str, Any]]:
        """This worker's micro batches of step `step`, as keyword arguments of the model."""
        windows_B = window_indices(
            self._data.mix,
            seed=self._seed,
            step=step,
            global_batch_size=self._global_batch_size,
            num_samples_before=self._num_samples_before,
        )
        mine_b = windows_B[self._rank * self._share : (self._rank + 1) * self._share]
        tokens_bT = torch.from_numpy(self._data.train.take(mine_b)).long()
        return [self._batch(tokens_mT) for tokens_mT in tokens_bT.split(self._micro_batch_size)]

    def _batch(self, tokens_mT: torch.Tensor) -> dict[str, Any]:
        tokens_mT = tokens_mT.to(self._device, non_blocking=True)
        return {"input_ids": tokens_mT, "labels": labels_of(tokens_mT, self._data.pad_token_id)}
