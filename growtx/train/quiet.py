"""Runs at the start of every Ray process of a run; imports nothing heavy, because every process waits for it."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

_MODULES = (
    "ray.train.v2._internal.execution.controller.placement_group_cleaner",
    "ray.train.v2",
    "DeepSpeed",
)


def quiet_worker() -> None:
    """Leave warnings and errors of our own visible, and turn the libraries' chatter off."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in _MODULES:
        logging.getLogger(name).setLevel(logging.ERROR)
    spec = find_spec("ray")
    if spec is not None and spec.origin is not None:
        # Ray names this logger after the file, so it is not below "ray.train".
        context = Path(spec.origin).parent / "train/v2/_internal/execution/context.py"
        logging.getLogger(str(context)).setLevel(logging.WARNING)
