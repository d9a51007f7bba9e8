"""What a worker process keeps from stage to stage: data, tokenizer, held-out windows, the progress board."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from growtx.data.packing import PackedData, open_packed
from growtx.data.tokenizer import load_tokenizer, token_num_bytes, tokenizer_fingerprint
from growtx.growth.assembly import check_same
from growtx.growth.lineage import TOKENIZER_DIR
from growtx.store.storage import Storage
from growtx.train.held_out import HeldOut
from growtx.train.job import TrainJob
from growtx.train.progress import BoardHandler, Place, Poster, StageProgress


class WorkerContext:
    """Opened once per job of a worker process.

    Args:
        board: the progress actor, or None.
        place: where the job stands among the runs of its worker group.
    """

    def __init__(self, job: TrainJob, board: Any, place: Place) -> None:
        self.job = job
        torch.set_num_threads(max(1, int(job.resources.cpus_per_worker)))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.data: PackedData = open_packed(job.packed_path)
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(Storage(job.run_dir).download(TOKENIZER_DIR))
        found = tokenizer_fingerprint(self.tokenizer)
        check_same("tokenizer", job.architecture["tokenizer_fingerprint"], found, f"{job.run_dir}/{TOKENIZER_DIR}")
        self.held_out = HeldOut(
            self.data,
            num_windows=job.training.evaluation.num_windows,
            bytes_V=torch.from_numpy(token_num_bytes(self.tokenizer)),
        )
        self.poster = Poster(board)
        if board is not None:
            logging.getLogger("growtx").handlers = [BoardHandler(board)]
        self.progress = StageProgress(place=place)
