"""Which worker group does which run: groups that are given the same jobs divide them among themselves as they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray


@ray.remote(num_cpus=0)
class ClaimBoard:
    """Remembers which group took a run first."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def take(self, run_dir: str, group: str) -> bool:
        """Whether the run is the group's: it was unclaimed, or is this group's already (after lost workers, say)."""
        return self._owners.setdefault(run_dir, group) == group


@dataclass(frozen=True)
class Claims:
    """A worker group's access to the board."""

    board: Any
    group: str

    def take(self, run_dir: str) -> bool:
        return bool(ray.get(self.board.take.remote(run_dir, self.group)))
