"""Ray's messages on its workers. Imported at the start of every Ray process: the standard library only."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

SEEN = "2.60.0"
_CLEANER = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
TOUCHED = (
    (f'{_CLEANER}:"getLogger(__name__)"', "silence what it logs every second where Ray has no dashboard"),
    (
        'ray.train.v2._internal.execution.context:"getLogger(__file__)"',
        "silence a logger that is named after its file and therefore not below ray.train",
    ),
)


def silence_worker_logs() -> None:
    """Leave warnings and errors of our own visible, and silence the libraries' messages."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in (_CLEANER, "ray.train.v2", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    spec = find_spec("ray")
    if spec is not None and spec.origin is not None:
        context = Path(spec.origin).parent / "train/v2/_internal/execution/context.py"
        logging.getLogger(str(context)).setLevel(logging.WARNING)
