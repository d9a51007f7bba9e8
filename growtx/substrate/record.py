"""What a run remembers of its substrate: `substrate.json`."""

from __future__ import annotations

from typing import Any

from growtx.config import ConfigModel

SUBSTRATE_FILE = "substrate.json"


class SubstrateRecord(ConfigModel):
    """Which blob of a run holds the substrate, and how to make it again."""

    blob: str
    substrate_fingerprint: str
    expansion: str
    kind: str
    recipe: dict[str, Any]
