"""Presets of every kind of job, told apart by their key `kind` (none: a run of `rayjobs/grow.py`)."""

from __future__ import annotations

from growtx.config import load_preset
from growtx.pipeline.run_config import JobConfig, load_run_config
from growtx.pipeline.specialists_config import load_specialists_config


def load_config(preset: str) -> JobConfig:
    """The resolved configuration of a preset, whatever its kind.

    Raises:
        ConfigError: naming key, value and remedy.
    """
    is_specialists = load_preset(preset).get("kind") == "specialists"
    return load_specialists_config(preset, []) if is_specialists else load_run_config(preset, [])
