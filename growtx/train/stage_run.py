"""One stage on one worker: grow the model, train it, resume it, stop it in time.

All ranks run the same code; what only one may do (files, samples) goes through `on_rank_zero`.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from growtx.exceptions import TrainingError
from growtx.growth.assembly import grow, read_state
from growtx.growth.budget import active_parameters, count_trainable
from growtx.growth.freezing import prepare_for_stage
from growtx.growth.plan import Stage
from growtx.growth.prefix_plan import PrefixPlan
from growtx.models.scoring import TextScore
from growtx.store.blobs import BlobStore
from growtx.store.manifest import Manifest
from growtx.store.storage import Storage
from growtx.train.batches import Batches
from growtx.train.checkpoints import CheckpointInfo, find_checkpoint, read_checkpoint, write_checkpoint
from growtx.train.distributed import (
    any_rank,
    on_all_ranks,
    on_rank_zero,
    rank,
    sum_over_ranks,
    worker_device,
    world_size,
)
from growtx.train.engine import Engine
from growtx.train.held_bytes import memory_metrics
from growtx.train.kernels import set_kernels
from growtx.train.memory import reset_peak_memory
from growtx.train.prefix_stage import use_prefix_cache
from growtx.train.schedule import learning_rate_factor
from growtx.train.stage_record import Position, StageRecord
from growtx.train.worker_context import WorkerContext


class StageRun:
    """Trains one stage from its parent to its end.

    Args:
        parent: the manifest that the stage builds on, None for the first.
    """

    def __init__(self, context: WorkerContext, stage: Stage, parent: Manifest | None) -> None:
        self.context, self.job, self.stage, self.parent = context, context.job, stage, parent
        self.settings = self.job.training_of(stage)
        self.tokens_per_step = self.job.tokens_per_step(stage)
        self.storage = Storage(self.job.run_dir)
        self.store = BlobStore(self.job.store_dir)
        self.config = self.job.model_at(stage.num_blocks)
        self.num_steps = stage.train.num_steps(self.tokens_per_step)
        self.position = Position()
        self.pause_seconds: float | None = None  # since the last step of the stage before, on the same worker group
        self.fingerprint = self.job.stage_fingerprint(stage, parent.digest() if parent else None)
        self.tokens_before = parent.num_tokens if parent else 0
        self.record = StageRecord(context, stage, num_steps=self.num_steps, tokens_before=self.tokens_before)
        reset_peak_memory()
        self.batches = self._build_batches()
        self.prefix_plan = self._use_prefix_cache()
        self.record.prefix_cached = self.prefix_cached
        self.engine = self._build_engine()
        self.frozen_before, self.num_frozen_tensors = self.engine.frozen_hash()

    def _build_engine(self) -> Engine:
        state = read_state(self.store, self.parent) if self.parent else None
        substrate = next(iter(self.store.get(self.job.substrate.blob).values()))
        model = grow(self.config, self.stage, state, substrate, seed=self.job.seed)
        wrapped = prepare_for_stage(model, self.stage, seed=self.job.seed)
        assert count_trainable(wrapped) == active_parameters(self.config, self.stage)
        on_all_ranks(lambda: set_kernels(model, self.settings, worker_device()))
        wrapped.train()
        return Engine(wrapped, self.stage, self.settings)

    def _build_batches(self) -> Batches:
        return Batches(
            self.context.data,
            seed=self.job.seed,
            global_batch_size=self.settings.global_batch_size,
            micro_batch_size=self.settings.micro_batch(world_size()),
            num_samples_before=self.tokens_before // self.job.context_length,
            rank=rank(),
            world_size=world_size(),
            device=worker_device(),
        )

    def _use_prefix_cache(self) -> PrefixPlan | None:
        """Decide about the prefix's activations and, if they are to be cached, compute what is missing."""
        if self.parent is None or self.stage.num_frozen == 0:
            return None
        micro_batch = self.settings.micro_batch(world_size())
        return use_prefix_cache(
            self.job, self.stage, self.parent, self.batches, num_steps=self.num_steps, micro_batch=micro_batch
        )

    @property
    def prefix_cached(self) -> bool:
        """Whether the frozen prefix's activations are read instead of computed."""
        return self.batches.reads_prefix

    def memory_metrics(self) -> dict[str, Any]:
        """What this worker held and what was forecast; nothing if the stage was over before its first step."""
        held = self.engine.held
        if held is None:
            return {}
        return memory_metrics(held, self.config, self.stage, self.settings, num_workers=world_size())

    def close(self) -> None:
        """Free what the stage holds, so that the next one can start in this process."""
        self.engine.close()

    @property
    def num_tokens(self) -> int:
        return self.record.num_tokens(self.position)

    def train(self) -> str:
        """Run to the end of the stage; returns what ended it.

        Raises:
            TrainingError: the loss is no longer finite.
            StopRequested: someone asked to stop; a checkpoint was saved.
        """
        if not self._resume():
            self.evaluate("start")
        ended_by = self._end()
        last_save = last_log = time.monotonic()
        window, steps_in_window = torch.zeros(2, dtype=torch.float64), 0
        while ended_by is None:
            started = time.monotonic()
            window += self._step().cpu()
            steps_in_window += 1
            self.position.seconds += time.monotonic() - started
            self.record.show(self.position)  # in every step, because the answer may be a request to stop
            if self._is_due(self.settings.log_every_steps) or self.position.step >= self.num_steps:
                self._log(window, (time.monotonic() - last_log) / steps_in_window)
                window, steps_in_window = torch.zeros(2, dtype=torch.float64), 0
            self._evaluate_if_due()
            stop, save = any_rank(self._flags(last_save))
            if save or stop:
                self.save()
                last_save = time.monotonic()
            if stop:
                raise StopRequested
            if steps_in_window == 0:
                last_log = time.monotonic()
            ended_by = self._end()
        return ended_by

    def _step(self) -> torch.Tensor:
        micro_batches = self.batches.at(self.position.step)
        num_targets = self.settings.micro_batch(world_size()) * (self.config.max_position_embeddings - 1)
        if self.stage.lora is not None and self.stage.lora.dropout > 0:
            torch.manual_seed(hash((self.job.seed, self.stage.index, self.position.step, rank())) % 2**31)
        factor = learning_rate_factor(self.stage.train, self.position.step, self.num_steps)
        if self.position.step == 0 and self.context.last_step_ended is not None:
            self.pause_seconds = time.monotonic() - self.context.last_step_ended
        totals = self.engine.step(micro_batches, num_targets, factor)
        self.context.last_step_ended = time.monotonic()
        self.position.step += 1
        return totals

    def _is_due(self, every_steps: int | None) -> bool:
        return every_steps is not None and self.position.step % every_steps == 0

    def _flags(self, last_save: float) -> list[bool]:
        checkpoint = self.settings.checkpoint
        due = self._is_due(checkpoint.every_steps)
        if rank() == 0 and checkpoint.every_seconds is not None:
            due = due or time.monotonic() - last_save >= checkpoint.every_seconds
        at_end = self.position.step >= self.num_steps  # the stage is about to be sealed, which is better
        return [self.context.poster.stop_requested, due and not at_end]

    def _end(self) -> str | None:
        train = self.stage.train
        if train.convergence and self.position.evaluations_without_gain >= train.convergence.patience:
            return "convergence"
        if train.seconds is not None and any_rank([self.position.seconds >= train.seconds])[0]:
            return "seconds"
        if self.position.step >= self.num_steps:
            return "steps" if train.steps is not None and self.num_steps == train.steps else "tokens"
        return None

    def _log(self, window: torch.Tensor, seconds_per_step: float) -> None:
        nats, num_targets = sum_over_ranks(window).tolist()
        loss = nats / num_targets
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of stage {self.stage.index} is not finite at step {self.position.step}",
                "Lower train.learning_rate or training.gradient_clipping; finished stages are kept",
            )
        tokens_per_second = self.tokens_per_step / seconds_per_step
        factor = learning_rate_factor(self.stage.train, self.position.step - 1, self.num_steps)
        row = {
            "train/loss": loss,
            "train/learning_rate": self.stage.train.learning_rate * factor,
            "train/tokens_per_second": tokens_per_second,
            "train/grad_norm": self.engine.gradient_norm(),
        }
        self.record.write(self.position, row)
        self.record.show(self.position, loss=loss, tokens_per_second=tokens_per_second)

    def evaluate(self, when: str) -> dict[str, TextScore]:
        """Bits per byte on held-out windows, written to the metrics."""
        micro_batch = self.settings.micro_batch(world_size())
        scores = self.context.held_out.evaluate(self.engine.evaluation_model(), micro_batch, self.engine.device)
        total = scores[""]
        row = {"eval/loss": total.loss, "eval/bits_per_byte": total.bits_per_byte, "eval/when": when}
        self.record.write(self.position, row)
        self.record.show(self.position, bits_per_byte=total.bits_per_byte, evaluated=when == "during")
        if when == "start":
            self.position.first_score = total.bits_per_byte
        return scores

    def _evaluate_if_due(self) -> None:
        convergence = self.stage.train.convergence
        if convergence is not None and self._is_due(convergence.every_steps):
            score = self.evaluate("during")[""].bits_per_byte
            if score < self.position.best_bits_per_byte - convergence.min_delta:
                self.position.best_bits_per_byte, self.position.evaluations_without_gain = score, 0
            else:
                self.position.evaluations_without_gain += 1
        elif self._is_due(self.settings.evaluation.every_steps) and self.position.step < self.num_steps:
            self.evaluate("during")

    def save(self) -> None:
        """Write a checkpoint. Collective."""
        weights, moments = self.engine.trainable_state(), self.engine.optimizer_state()
        info = CheckpointInfo(
            stage=self.stage.index,
            stage_fingerprint=self.fingerprint,
            step=self.position.step,
            seconds=self.position.seconds,
            best_bits_per_byte=_finite(self.position.best_bits_per_byte),
            evaluations_without_gain=self.position.evaluations_without_gain,
            frozen_before=self.frozen_before,
            first_bits_per_byte=self.position.first_score,
        )
        keep = self.settings.checkpoint.keep
        on_rank_zero(lambda: write_checkpoint(self.storage, info, weights, moments, keep=keep))

    def _resume(self) -> bool:
        """Load the newest checkpoint of this stage, if there is one."""
        found = on_rank_zero(lambda: find_checkpoint(self.storage, self.stage.index, self.fingerprint))
        if found is None:
            self.record.rewind(-1)
            return False
        directory, info = found
        weights, moments = read_checkpoint(self.storage, directory)
        self.engine.load(weights, moments, info.step)
        if info.frozen_before != self.frozen_before:
            raise TrainingError(
                f"checkpoint {directory}: its frozen tensors are not the ones of this machine",
                f"Delete {directory} to repeat the stage from its start",
            )
        self.position = Position(
            step=info.step,
            seconds=info.seconds,
            best_bits_per_byte=math.inf if info.best_bits_per_byte is None else info.best_bits_per_byte,
            evaluations_without_gain=info.evaluations_without_gain,
            first_score=info.first_bits_per_byte,
        )
        self.record.rewind(info.step)
        return True


class StopRequested(Exception):
    """The run was asked to save and stop."""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
