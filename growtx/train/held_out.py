"""Evaluation during training: bits per byte on the same held-out windows, split over the workers.

Shapes: N windows, B micro batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from growtx.data.packing import PackedData
from growtx.models.loss import IGNORE_INDEX, TextScore, labels_of, score_windows
from growtx.train.distributed import rank, sum_over_ranks, world_size


class HeldOut:
    """The first held-out windows of every source, as many of each as its weight calls for.

    Args:
        bytes_V: UTF-8 bytes of each token.
    """

    def __init__(self, data: PackedData, *, num_windows: int, bytes_V: torch.Tensor) -> None:
        chosen: list[tuple[str, np.ndarray]] = []
        total_weight = sum(data.weights)
        for source, weight in zip(data.validation.sources, data.weights, strict=True):
            wanted = max(1, round(num_windows * weight / total_weight))
            if len(source.windows):  # a small source of a mix may have nothing held out
                chosen.append((source.source, np.asarray(source.windows[:wanted])))
        self.sources = [name for name, _ in chosen]
        self.tokens_NT = torch.from_numpy(np.concatenate([windows for _, windows in chosen]).astype(np.int64))
        self._source_N = torch.tensor([index for index, (_, windows) in enumerate(chosen) for _ in windows])
        self._bytes_V = bytes_V
        self._pad_token_id = data.pad_token_id

    def evaluate(
        self,
        model: nn.Module,
        micro_batch: int,
        device: torch.device,
        between_passes: Callable[[], None] | None = None,
    ) -> dict[str, TextScore]:
        """Score of each source and of all together under the name ''. Collective.

        Every rank runs the same number of batches, as sharded parameters require; surplus ones do not count.

        Args:
            between_passes: called before every batch; what it raises on every rank ends the evaluation.
        """
        was_training = model.training
        model.eval()
        try:
            totals = self._totals(model, micro_batch, device, between_passes)
        finally:
            model.train(was_training)
        totals = sum_over_ranks(totals)
        scores = {name: TextScore(*row.tolist()) for name, row in zip(self.sources, totals, strict=True)}
        scores[""] = TextScore(*totals.sum(0).tolist())
        return scores

    def _totals(
        self, model: nn.Module, micro_batch: int, device: torch.device, between_passes: Callable[[], None] | None
    ) -> torch.Tensor:
        """What this rank's share adds to the score of each source."""
        per_pass = micro_batch * world_size()
        totals = torch.zeros(len(self.sources), 3, dtype=torch.float64)
        for start in range(0, len(self.tokens_NT), per_pass):
            if between_passes is not None:
                between_passes()
            rows = torch.arange(start + rank() * micro_batch, start + (rank() + 1) * micro_batch)
            inside = rows < len(self.tokens_NT)
            rows = rows.clamp_max(len(self.tokens_NT) - 1)
            tokens_BT = self.tokens_NT[rows]
            labels_BT = labels_of(tokens_BT, self._pad_token_id)
            labels_BT = labels_BT.masked_fill(~inside[:, None], IGNORE_INDEX)
            scores_B3 = score_windows(model, tokens_BT.to(device), labels_BT.to(device), self._bytes_V.to(device))
            totals.index_add_(0, self._source_N[rows], scores_B3.cpu())
        return totals
