"""What a worker process keeps from stage to stage: data, tokenizer, held-out windows, the progress actor."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from growtx.data.packing import PackedData, open_packed
from growtx.data.tokenizer import load_tokenizer, token_num_bytes, tokenizer_fingerprint
from growtx.exceptions import ConfigError, DataError
from growtx.growth.assembly import check_same
from growtx.growth.lineage import TOKENIZER_DIR
from growtx.storage import STORAGE_VARIABLE, Storage
from growtx.train.distributed import any_rank, on_all_ranks, on_rank_zero, rank, use_device
from growtx.train.held_out import HeldOut
from growtx.train.job import TrainJob
from growtx.train.progress import DriverLogHandler, ProgressReporter, RunPosition, StageProgress, StopRequested
from growtx.train.tracking import Trackers, TrainingGauges

logger = logging.getLogger(__name__)
VISIBLE_WITHIN_SECONDS = 15.0  # network file systems show new files late


class WorkerContext:
    """Opened once per job of a worker process.

    Args:
        progress_actor: the progress actor, or None.
        run_position: where the job stands among the runs of its worker group.
    """

    def __init__(self, job: TrainJob, progress_actor: Any, run_position: RunPosition) -> None:
        self.job = job
        on_all_ranks(partial(use_device, use_gpu=job.resources.use_gpu))
        torch.set_num_threads(max(1, int(job.resources.cpus_per_worker)))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        on_all_ranks(partial(_check_visible, job))
        self.data: PackedData = on_all_ranks(partial(_open_data, job))
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(Storage(job.store_dir).download(TOKENIZER_DIR))
        found = tokenizer_fingerprint(self.tokenizer)
        check_same("tokenizer", job.architecture["tokenizer_fingerprint"], found, f"{job.store_dir}/{TOKENIZER_DIR}")
        self.held_out = HeldOut(
            self.data,
            num_windows=job.training.evaluation.num_windows,
            bytes_V=torch.from_numpy(token_num_bytes(self.tokenizer)),
        )
        self.reporter = ProgressReporter(progress_actor)
        if progress_actor is not None:
            logging.getLogger("growtx").handlers = [DriverLogHandler(progress_actor)]
        self.is_warned = False  # that this worker group will lose a node, so that a checkpoint was saved
        self.last_step_ended: float | None = None  # on the monotonic clock
        self.progress = StageProgress(run_position=run_position)
        self._gauges = TrainingGauges(job.run_dir) if rank() == 0 else None
        self._trackers: Trackers | None = None
        on_rank_zero(self._open_trackers)

    def _open_trackers(self) -> None:
        self._trackers = Trackers(self.job.tracking, self.job.run_storage)

    def show(self, row: Mapping[str, Any]) -> None:
        """Pass a row of metrics to the reporters; only rank 0 has any."""
        if self._gauges is not None:
            try:
                self._gauges.update(row)
            except Exception as error:  # whatever Ray's exporter raises: no run ends because it is watched
                logger.warning("metrics of this run are no longer exported: %s", error)
                self._gauges = None
        if self._trackers is not None:
            self._trackers.add(row)

    def stop_if_asked(self) -> None:
        """Between two parts of whatever takes long and is no training step. Collective.

        Raises:
            StopRequested: some rank has heard that the run shall stop.
        """
        if any_rank([self.reporter.ask()])[0]:
            raise StopRequested

    def end_stage(self) -> None:
        """Let trackers store what they hold."""
        if self._trackers is not None:
            self._trackers.end_stage()

    def close(self, *, finished: bool) -> None:
        """Let trackers send what they hold; after a takeover the services' runs belong to another process."""
        if self._trackers is not None and all(fence.is_current for fence in self.job.fences):
            self._trackers.close(finished=finished)


def _open_data(job: TrainJob) -> PackedData:
    """Raises DataError: the packed data is damaged, or was replaced by another since the driver has looked at it."""
    try:
        data = open_packed(job.packed_path, job.local_bytes)
    except DataError as error:
        raise DataError(error.problem, "Run the same command with --resume: it is packed again") from error
    if data.fingerprint != job.data_fingerprint:
        raise DataError(
            f"packed data {job.packed_path} is not what this run was prepared with",
            "Run the same command with --resume",
        )
    return data


def _check_visible(job: TrainJob) -> None:
    """Refuse storage that this worker's node does not see.

    Raises:
        ConfigError: naming the node and what it lacks.
    """
    deadline = time.monotonic() + VISIBLE_WITHIN_SECONDS
    for path in (f"{job.store_dir}/{TOKENIZER_DIR}", job.packed_path):
        while not Storage(path).exists():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the worker on {socket.gethostname()} does not see {path}",
                    f"Let {STORAGE_VARIABLE} (or --run-dir) and cache_dir name a place that all nodes share",
                )
            time.sleep(1.0)
