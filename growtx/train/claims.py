"""Which worker group does which run: groups that are given the same jobs divide them among themselves as they go."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from growtx.storage import Storage
from growtx.train.progress import insist, start_control_actor

CLAIMS_FILE = "claims.json"  # there while the groups work: a registry that is started anew must not forget


class ClaimRegistry:
    """Remembers which group took a run first.

    Args:
        place: where the owners are written before anybody hears of them.
    """

    def __init__(self, place: Storage) -> None:
        self._place = place
        self._owners: dict[str, str] = json.loads(place.read_text(CLAIMS_FILE)) if place.exists(CLAIMS_FILE) else {}

    def claim(self, run_dir: str, group: str) -> bool:
        """Whether the run is the group's: it was unclaimed, or is this group's already (after lost workers, say)."""
        if run_dir not in self._owners:
            self._place.write_text(CLAIMS_FILE, json.dumps({**self._owners, run_dir: group}))
            self._owners[run_dir] = group
        return self._owners[run_dir] == group


def start_registry(place: Storage) -> Any:
    """A registry to which every run is unclaimed, whatever an interrupted driver has left."""
    forget_claims(place)
    return start_control_actor(ClaimRegistry, place)


def forget_claims(place: Storage) -> None:
    """Once the groups have ended."""
    if place.exists(CLAIMS_FILE):
        place.remove(CLAIMS_FILE)


@dataclass(frozen=True)
class RunClaims:
    """A worker group's access to the registry."""

    registry: Any
    group: str

    def claim(self, run_dir: str) -> bool:
        return bool(insist(lambda: self.registry.claim.remote(run_dir, self.group)))
