"""Which worker group does which run: groups that are given the same jobs divide them among themselves as they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray


@ray.remote(num_cpus=0)
class ClaimRegistry:
    """Remembers which group took a run first."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def claim(self, run_dir: str, group: str) -> bool:
        """Whether the run is the group's: it was unclaimed, or is this group's already (after lost workers, say)."""
        return self._owners.setdefault(run_dir, group) == group


@dataclass(frozen=True)
class RunClaims:
    """A worker group's access to the registry."""

    registry: Any
    group: str

    def claim(self, run_dir: str) -> bool:
        return bool(ray.get(self.registry.claim.remote(run_dir, self.group)))
