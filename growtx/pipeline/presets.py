"""Presets of every kind of job, told apart by their key `kind` (none: a run of `rayjobs/grow.py`)."""

from __future__ import annotations

from collections.abc import Callable

from growtx.config import load_preset
from growtx.pipeline.run_config import JobConfig, load_run_config
from growtx.pipeline.specialists_config import load_specialists_config
from growtx.pipeline.study_config import load_study_config
from growtx.pipeline.sweep_config import load_sweep_config


def load_config(preset: str) -> JobConfig:
    """The resolved configuration of a preset, whatever its kind.

    Raises:
        ConfigError: naming key, value and remedy.
    """
    loaders: dict[str, Callable[[str, list[str]], JobConfig]] = {
        "specialists": load_specialists_config,
        "study": load_study_config,
        "sweep": load_sweep_config,
    }
    load: Callable[[str, list[str]], JobConfig] = loaders.get(load_preset(preset).get("kind", ""), load_run_config)
    return load(preset, [])
