"""The rows of `metrics.jsonl` as TensorBoard event files, for looking on: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from growtx.store.storage import Storage

TENSORBOARD_DIR = "tensorboard"
_PLAIN = ("num_blocks", "active_parameters", "peak_memory_bytes")  # beside every key such as train/loss


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row that make a curve."""
    shown = {key: value for key, value in row.items() if "/" in key or key in _PLAIN}
    return {key: value for key, value in shown.items() if isinstance(value, (int, float))}


class TensorBoardLog:
    """Writes one event file per stage and attempt; the x axis is tokens seen by the run.

    Where the run directory is on a remote file system, the file is uploaded when it is closed.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._directory = storage.path(TENSORBOARD_DIR) if storage.is_local else tempfile.mkdtemp()
        self._writer: Any = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row. What an earlier attempt wrote after the first row's tokens is hidden."""
        tokens = int(row["num_tokens"])
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._directory, purge_step=tokens + 1, flush_secs=30)  # type: ignore[no-untyped-call]
        for key, value in scalars(row).items():
            self._writer.add_scalar(key, value, tokens)

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        if not self._storage.is_local:
            self._storage.upload(self._directory, TENSORBOARD_DIR)
