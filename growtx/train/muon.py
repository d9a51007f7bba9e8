"""Muon for the matrices of blocks and AdamW for everything else, in one optimizer that steps what ZeRO leaves a rank.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) makes the momentum of a matrix orthogonal, so it has to see
whole matrices, while every ZeRO stage leaves a rank one flat tensor with pieces of them. Here the ranks gather the
momentum, each makes its share of the matrices orthogonal, and each keeps its own piece of the result. DeepSpeed has a
Muon too, which is not used: it is reported to become AdamW silently for a model made under `zero.Init`, and to fail
where parts of a model are frozen.

An update is as long as one of AdamW usually is (0.2 a weight: Liu et al., arXiv:2502.16982), so that learning rate and
weight decay mean the same for both.

Shapes: W ranks, S numbers of a rank's shard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional as F

from growtx.growth.flops import MUON_ITERATIONS

MOMENTUM = 0.95
UPDATE_LENGTH = 0.2  # root mean square of an update at learning rate 1
_QUINTIC = (3.4445, -4.7750, 2.0315)  # takes singular values to about 1 in five iterations
LAYOUT = "matrix_layout"  # key of a parameter group that Muon steps


@dataclass(frozen=True)
class MatrixLayout:
    """How the matrices of a parameter group lie in the ranks' shards.

    Attributes:
        shapes: of the matrices, in order.
        is_each_divided: whether every matrix is divided among all ranks (ZeRO 3), or all of them together, one after
            the other (ZeRO 1 and 2).
    """

    shapes: tuple[tuple[int, int], ...]
    is_each_divided: bool

    def whole(self, shards_WS: torch.Tensor) -> list[torch.Tensor]:
        """The matrices, of the shards of all ranks."""
        sizes = [rows * columns for rows, columns in self.shapes]
        if self.is_each_divided:
            pieces = torch.split(shards_WS, self._piece_sizes(len(shards_WS)), dim=1)
            flat = [piece.flatten()[:size] for piece, size in zip(pieces, sizes, strict=True)]
        else:
            flat = list(torch.split(shards_WS.flatten()[: sum(sizes)], sizes))
        return [values.view(shape) for values, shape in zip(flat, self.shapes, strict=True)]

    def shard(self, matrices: Sequence[torch.Tensor], *, rank: int, num_ranks: int, size: int) -> torch.Tensor:
        """One rank's shard [S] of the matrices, padded with zeros."""
        if not self.is_each_divided:
            flat = torch.cat([matrix.flatten() for matrix in matrices])
            return F.pad(flat, (0, size * num_ranks - flat.numel()))[rank * size : (rank + 1) * size]
        pieces = []
        for matrix, piece in zip(matrices, self._piece_sizes(num_ranks), strict=True):
            padded = F.pad(matrix.flatten(), (0, piece * num_ranks - matrix.numel()))
            pieces.append(padded[rank * piece : (rank + 1) * piece])
        return torch.cat(pieces)

    def _piece_sizes(self, num_ranks: int) -> list[int]:
        return [math.ceil(rows * columns / num_ranks) for rows, columns in self.shapes]


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but for groups that have a `MatrixLayout`, whose one parameter is a rank's shard of matrices.

    The momentum is kept as AdamW's first moment is, under the name `exp_avg`; there is no second one.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of the groups that ZeRO has put in place. Collective."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if LAYOUT not in group]
        if any(group["params"] for group in self.param_groups):
            super().step(closure)
        self.param_groups = groups
        for group in groups:
            if LAYOUT in group:
                for shard in group["params"]:
                    self._step_matrices(group[LAYOUT], shard, group["lr"], group["weight_decay"])

    def _step_matrices(self, layout: MatrixLayout, shard: torch.Tensor, rate: float, weight_decay: float) -> None:
        gradient, momentum = shard.grad, self.state[shard]["exp_avg"]
        assert gradient is not None
        gradient = gradient.to(momentum.dtype)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # Nesterov's
        shard.mul_(1 - rate * weight_decay)
        shard.add_(_orthogonalized_shard(layout, ahead), alpha=-rate)


def _orthogonalized_shard(layout: MatrixLayout, shard: torch.Tensor) -> torch.Tensor:
    """This rank's shard of the updates, of its shard of the momentum. Collective."""
    num_ranks, rank = dist.get_world_size(), dist.get_rank()
    shards_WS = shard.new_empty(num_ranks, shard.numel())
    dist.all_gather(list(shards_WS), shard)
    matrices = layout.whole(shards_WS)
    # Each rank does its share; the others' are zeros, so that the sum over ranks is all of them.
    updates = [
        _update_of(matrix) if index % num_ranks == rank else torch.zeros_like(matrix)
        for index, matrix in enumerate(matrices)
    ]
    flat = torch.cat([update.flatten() for update in updates])
    dist.all_reduce(flat)
    sizes = [matrix.numel() for matrix in matrices]
    return layout.shard(torch.split(flat, sizes), rank=rank, num_ranks=num_ranks, size=shard.numel())


def _update_of(matrix: torch.Tensor) -> torch.Tensor:
    return orthogonalized(matrix) * (UPDATE_LENGTH * math.sqrt(max(matrix.shape)))


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix of the same singular vectors whose singular values are near 1 (0.7 to 1.2), by Newton and Schulz.

    In bf16 on GPUs, which is exact enough for it; 0 stays 0.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    wide = wide / (wide.norm() + 1e-20)
    if wide.is_cuda:
        wide = wide.bfloat16()
    first, third, fifth = _QUINTIC
    for _ in range(MUON_ITERATIONS):
        square = wide @ wide.T
        wide = first * wide + (third * square + fifth * square @ square) @ wide
    found: torch.Tensor = (wide.T if is_tall else wide).to(matrix.dtype)
    return found
