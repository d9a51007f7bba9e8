"""One stage on one worker: grow the model, train it, resume it, stop it in time, finalize it.

All ranks run the same code; what only one may do (files, samples) goes through `on_rank_zero`.
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from growtx import __version__
from growtx.command import resume_command
from growtx.compat.ray import will_be_preempted
from growtx.compat.torch import num_compiled_graphs
from growtx.data.tokenizer import INCOMPLETE, document_ids, visible_text
from growtx.exceptions import GrowtxError, StoreError, TrainingError
from growtx.generator import turns_after
from growtx.growth.assembly import (
    State,
    assemble,
    build_stage_model,
    head_state,
    read_state,
    stage_manifest,
    store_stage,
)
from growtx.growth.flops import PrefixPlan, active_parameters, count_trainable
from growtx.growth.freezing import prepare_for_stage
from growtx.growth.lineage import OWN_MIX, WINDOWS, WINDOWS_SINCE_FIRST
from growtx.growth.lora import without_peft_prefix
from growtx.growth.plan import Stage, StageTraining
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.loss import TextScore
from growtx.sampling import Sampling, continue_text, eos_token_ids, seed_of_choice
from growtx.store.blobs import hash_tensors
from growtx.store.manifest import FrozenCheck, Manifest, write_manifest
from growtx.store.runs import MetricsLog
from growtx.train.batches import Batches
from growtx.train.checkpoints import CheckpointInfo, find_checkpoint, read_checkpoint, write_checkpoint
from growtx.train.distributed import (
    any_rank,
    on_all_ranks,
    on_rank_zero,
    on_rank_zero_alone,
    rank,
    sum_over_ranks,
    to_worker,
    worker_device,
    world_size,
)
from growtx.train.engine import TrainEngine
from growtx.train.kernels import set_kernels, use_bf16
from growtx.train.memory import memory_metrics, peak_memory_bytes, reset_peak_memory
from growtx.train.prefix_stage import use_prefix_cache
from growtx.train.progress import StageProgress, StopRequested
from growtx.train.worker_context import WorkerContext

logger = logging.getLogger(__name__)

# Learning rate as a pure function of the step, so that resuming needs no scheduler state.


def learning_rate_factors(stage: Stage, step: int, num_steps: int) -> tuple[float, float]:
    """Shares of the peak learning rate at optimizer step `step` (from 0) of `num_steps`.

    Returns:
        That of what is new in the stage, and that of what trained before it. They are the same, unless the plan has one
        schedule, in which the latter goes on at the rate that is held (warm-up, stable, decay: Hu et al.,
        arXiv:2404.06395).
    """
    if stage.span is None:
        factor = learning_rate_factor(stage.train, step, num_steps)
        return factor, factor
    start, end = stage.span
    held_until = 1.0 - stage.decay
    place = start + (end - start) * step / num_steps
    held = _decayed(stage.train, (place - held_until) / stage.decay) if place > held_until else 1.0
    num_warmup = round(stage.train.warmup * num_steps)
    warm = min(1.0, (step + 1) / num_warmup) if num_warmup else 1.0
    return warm * held, held if start > 0 else warm * held


def learning_rate_factor(train: StageTraining, step: int, num_steps: int) -> float:
    """Share of the peak learning rate at optimizer step `step` (from 0) of `num_steps`, in a stage's own schedule.

    Linear warm-up over `train.warmup` of the steps, then `train.schedule` down to `train.final_learning_rate`.
    """
    num_warmup = round(train.warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return _decayed(train, min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup)))


def _decayed(train: StageTraining, progress: float) -> float:
    """`train.schedule` from 1 at progress 0 down to `train.final_learning_rate` at progress 1."""
    if train.schedule == "constant":
        return 1.0
    remaining = 1.0 - progress if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return train.final_learning_rate + (1.0 - train.final_learning_rate) * remaining


# What a stage reports while it runs: rows of metrics, the progress display.


@dataclass
class TrainingProgress:
    """How far the stage is; what a checkpoint remembers besides tensors."""

    step: int = 0
    seconds: float = 0.0
    best_bits_per_byte: float = math.inf
    evaluations_without_gain: int = 0
    first_score: float | None = None


class StageLogger:
    """Records and shows how far a stage is.

    Args:
        num_steps: of the stage, unless time or convergence end it sooner.
        tokens_before: tokens that earlier stages have trained on.
    """

    def __init__(self, context: WorkerContext, stage: Stage, *, num_steps: int, tokens_before: int) -> None:
        self._context, self._job, self._stage = context, context.job, stage
        self._num_steps = num_steps
        self._tokens_before = tokens_before
        self._tokens_per_step = self._job.tokens_per_step(stage)
        self._metrics = MetricsLog(self._job.run_storage)
        self._active = active_parameters(self._job.model_at(stage.num_blocks), stage)
        self.prefix_cached = False  # whether the frozen prefix's activations are read instead of computed

    def num_tokens(self, position: TrainingProgress) -> int:
        """Tokens trained on since the first stage."""
        return self._tokens_before + position.step * self._tokens_per_step

    def rewind(self, step: int) -> None:
        """Forget the rows after a step of this stage. Collective."""
        on_rank_zero(lambda: self._metrics.rewind(stage=self._stage.index, step=step))

    def write(self, position: TrainingProgress, values: dict[str, Any]) -> None:
        """Add a row. Collective."""
        row = {
            "step": position.step,
            "stage": self._stage.index,
            "stage_name": self._stage.name,
            "num_blocks": self._stage.num_blocks,
            "num_tokens": self.num_tokens(position),
            **values,
            "active_parameters": self._active,
            "peak_memory_bytes": peak_memory_bytes(),
            "time_seconds": round(position.seconds, 3),
        }
        on_rank_zero(lambda: self._metrics.append(row))
        self._context.show(row)

    def flush(self) -> None:
        """See that all rows so far are stored. By rank 0."""
        self._metrics.flush()

    def show(self, position: TrainingProgress, **values: Any) -> None:
        """Report to the driver, whose answer may be a request to stop. Values not given stay as they were."""
        if rank() != 0:
            return
        fraction = position.step / self._num_steps
        if self._stage.train.seconds is not None:
            fraction = max(fraction, position.seconds / self._stage.train.seconds)
        before = self._context.progress
        self._context.progress = StageProgress(
            stage=self._stage.index,
            name=self._stage.name,
            num_stages=self._job.num_stages,
            fraction=fraction,
            seconds=position.seconds,
            weights=self._job.stage_weights,
            bits_per_byte=values.get("bits_per_byte", before.bits_per_byte),
            loss=values.get("loss", before.loss),
            tokens_per_second=values.get("tokens_per_second", before.tokens_per_second),
            run_position=before.run_position,
            prefix_cached=self.prefix_cached,
            evaluated=values.get("evaluated", False),
        )
        self._context.reporter.report(self._context.progress)


class StageRun:
    """Trains one stage from its parent to its end.

    Args:
        parent: the manifest that the stage builds on, None for the first.
    """

    def __init__(self, context: WorkerContext, stage: Stage, parent: Manifest | None) -> None:
        self.context, self.job, self.stage, self.parent = context, context.job, stage, parent
        self.settings = self.job.training_of(stage)
        self.tokens_per_step = self.job.tokens_per_step(stage)
        self.storage, self.store = self.job.run_storage, self.job.blobs
        self.config = self.job.model_at(stage.num_blocks)
        self.num_steps = stage.train.num_steps(self.tokens_per_step)
        self.position = TrainingProgress()
        self.pause_seconds: float | None = None  # since the last step of the stage before, on the same worker group
        self.fingerprint = self.job.stage_fingerprint(stage, parent.digest() if parent else None)
        self.tokens_before = parent.num_tokens if parent else 0
        self.record = StageLogger(context, stage, num_steps=self.num_steps, tokens_before=self.tokens_before)
        reset_peak_memory()
        context.stop_if_asked()
        self.batches = self._build_batches()
        self.prefix_plan = self._use_prefix_cache()
        self.record.prefix_cached = self.prefix_cached
        self.engine = self._build_engine()
        self.frozen_before, self.num_frozen_tensors = self.engine.frozen_hash()
        self.active_before = hashes_of(self.engine.trainable_state())  # on rank 0, as below

    def _build_engine(self) -> TrainEngine:
        state = read_state(self.store, self.parent) if self.parent else None
        substrate = next(iter(self.store.get(self.job.substrate.blob).values()))
        model = build_stage_model(self.config, self.stage, state, substrate, seed=self.job.seed)
        wrapped = prepare_for_stage(model, self.stage, seed=self.job.seed)
        assert count_trainable(wrapped) == active_parameters(self.config, self.stage)
        on_all_ranks(lambda: set_kernels(model, self.settings, worker_device()))
        wrapped.train()
        return TrainEngine(wrapped, self.stage, self.settings)

    def _build_batches(self) -> Batches:
        turns_before = tuple(self._windows_before().values()) if self.has_own_mix else ()
        return Batches(
            self.context.data,
            seed=self.job.seed,
            global_batch_size=self.settings.global_batch_size,
            micro_batch_size=self.settings.micro_batch(world_size()),
            num_samples_before=0 if turns_before else self.tokens_before // self.job.context_length,
            rank=rank(),
            world_size=world_size(),
            device=worker_device(),
            mix=self.context.data.mix_of(self.stage.data),
            turns_before=turns_before,
        )

    @property
    def has_own_mix(self) -> bool:
        """Whether this stage, or one before it, has weights of sources of its own."""
        return self.stage.data is not None or bool(self.parent and self.parent.metrics.get(OWN_MIX))

    def _windows_before(self) -> dict[str, int]:
        """Windows of each source that the stages before have drawn."""
        names = [source.source for source in self.context.data.train.sources]
        known = self.parent.metrics.get(WINDOWS_SINCE_FIRST) if self.parent else None
        if known is None:  # of a stage from before that was written down, when all had one mix
            num_windows = self.tokens_before // self.job.context_length
            known = dict(zip(names, turns_after(num_windows, self.context.data.mix.weights), strict=True))
        return {name: known.get(name, 0) for name in names}

    def _windows_drawn(self) -> dict[str, dict[str, int]]:
        """For the manifest: what the stage saw of each source, and what it and those before it saw together."""
        before = self._windows_before()
        drawn = dict(zip(before, self.batches.drawn(self.position.step), strict=True))
        return {WINDOWS: drawn, WINDOWS_SINCE_FIRST: {name: before[name] + drawn[name] for name in before}}

    def _use_prefix_cache(self) -> PrefixPlan | None:
        """Decide about the prefix's activations and, if they are to be cached, compute what is missing."""
        if self.parent is None or self.stage.num_prefix == 0:
            return None
        micro_batch = self.settings.micro_batch(world_size())
        return use_prefix_cache(
            self.job,
            self.stage,
            self.parent,
            self.batches,
            num_steps=self.num_steps,
            micro_batch=micro_batch,
            is_stopping=self.context.reporter.ask,
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
        if rank() == 0:
            with suppress(GrowtxError):  # of a stage that failed; one that ended well has flushed them
                self.record.flush()
        self.batches.close()
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
        window, steps_in_window = torch.zeros(2, dtype=torch.float64, device=self.engine.device), 0
        while ended_by is None:
            started = time.monotonic()
            window += self._step()
            steps_in_window += 1
            is_logged = self._is_due(self.settings.log_every_steps) or self.position.step >= self.num_steps
            totals = sum_over_ranks(window) if is_logged else None  # waits for the GPU; other steps do not
            self.position.seconds += time.monotonic() - started
            self.record.show(self.position)  # in every step, because the answer may be a request to stop
            if totals is not None:
                self._log(totals, (time.monotonic() - last_log) / steps_in_window)
                window.zero_()
                steps_in_window = 0
            self._evaluate_if_due()
            stop, save, lost = any_rank(self._flags(last_save))
            if save or stop or lost:
                self._check_finite(sum_over_ranks(window))
                self.save()
                last_save = time.monotonic()
            if lost:
                raise TrainingError(
                    f"the workers have lost contact with the command that started them; a checkpoint of {self._where} "
                    "was saved",
                    "Run the same command with --resume",
                )
            if stop:
                raise StopRequested
            if steps_in_window == 0:
                last_log = time.monotonic()
            ended_by = self._end()
        return ended_by

    def _step(self) -> torch.Tensor:
        micro_batches = self.batches.at(self.position.step, is_last=self.position.step + 1 == self.num_steps)
        num_windows = self.settings.global_batch_size / (self.settings.num_micro_batches(world_size()) * world_size())
        num_targets = num_windows * (self.config.max_position_embeddings - 1)
        if self.stage.lora is not None and self.stage.lora.dropout > 0:
            torch.manual_seed(hash((self.job.seed, self.stage.index, self.position.step, rank())) % 2**31)
        of_new, of_old = learning_rate_factors(self.stage, self.position.step, self.num_steps)
        if self.position.step == 0 and self.context.last_step_ended is not None:
            self.pause_seconds = time.monotonic() - self.context.last_step_ended
        totals = self.engine.step(micro_batches, num_targets, of_new, of_old)
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
        if will_be_preempted() and not self.context.is_warned:
            logger.warning("a node of stage %d will be taken away; saving a checkpoint at once", self.stage.index)
            self.context.is_warned = due = True
        at_end = self.position.step >= self.num_steps  # the stage is about to be finalized, which is better
        reporter = self.context.reporter
        return [reporter.stop_requested, due and not at_end, reporter.is_lost]

    def _end(self) -> str | None:
        train = self.stage.train
        if train.convergence and self.position.evaluations_without_gain >= train.convergence.patience:
            return "convergence"
        if train.seconds is not None and any_rank([self.position.seconds >= train.seconds])[0]:
            return "seconds"
        if self.position.step >= self.num_steps:
            return "steps" if train.steps is not None and self.num_steps == train.steps else "tokens"
        return None

    def _log(self, totals: torch.Tensor, seconds_per_step: float) -> None:
        """Write the mean loss of [2], nats and predicted tokens of all ranks. Collective."""
        self._check_finite(totals)
        nats, num_targets = totals.tolist()
        loss = nats / num_targets
        tokens_per_second = self.tokens_per_step / seconds_per_step
        factor, _ = learning_rate_factors(self.stage, self.position.step - 1, self.num_steps)
        row = {
            "train/loss": loss,
            "train/learning_rate": self.stage.train.learning_rate * factor,
            "train/tokens_per_second": tokens_per_second,
            "train/grad_norm": self.engine.gradient_norm(),
        }
        self.record.write(self.position, row)
        self.record.show(self.position, loss=loss, tokens_per_second=tokens_per_second)

    def _check_finite(self, totals: torch.Tensor) -> None:
        """Also before a checkpoint is written that could only be resumed into the same error."""
        if not math.isfinite(totals[0]):
            raise TrainingError(
                f"the loss of {self._where} is not finite at step {self.position.step}", self._gentler()
            )

    def evaluate(self, when: str) -> dict[str, TextScore]:
        """Bits per byte on held-out windows, written to the metrics.

        Raises:
            StopRequested: someone asked to stop; unless nothing was trained, a checkpoint was saved.
        """
        micro_batch = self.settings.micro_batch(world_size())
        scores = self.context.held_out.evaluate(
            self.engine.evaluation_model(), micro_batch, self.engine.device, self.context.stop_if_asked
        )
        total = scores[""]
        row = {"eval/loss": total.loss, "eval/bits_per_byte": total.bits_per_byte, "eval/when": when}
        self.record.write(self.position, row)
        self.record.show(self.position, bits_per_byte=total.bits_per_byte, evaluated=when == "during")
        if when == "start":
            self.position.first_score = total.bits_per_byte
        return scores

    def _evaluate_if_due(self) -> None:
        try:
            self._evaluate_now_if_due()
        except StopRequested:
            self.save(evaluation_due=True)
            raise

    def _evaluate_now_if_due(self) -> None:
        convergence = self.stage.train.convergence
        if convergence is not None and self._is_due(convergence.every_steps):
            score = self.evaluate("during")[""].bits_per_byte
            if score < self.position.best_bits_per_byte - convergence.min_delta:
                self.position.best_bits_per_byte, self.position.evaluations_without_gain = score, 0
            else:
                self.position.evaluations_without_gain += 1
        elif self._is_due(self.settings.evaluation.every_steps) and self.position.step < self.num_steps:
            self.evaluate("during")

    def save(self, *, evaluation_due: bool = False) -> None:
        """Write a checkpoint. Collective.

        Args:
            evaluation_due: whether the evaluation of this step is to be made by whoever resumes.
        """
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
            data_fingerprint=self.job.data_fingerprint,
            evaluation_due=evaluation_due,
        )

        def write() -> None:
            self.record.flush()  # a run that goes on from here does not write these rows again
            write_checkpoint(self.storage, info, weights, moments, keep=self.settings.checkpoint.keep)

        on_rank_zero(write)

    def _resume(self) -> bool:
        """Load the newest checkpoint of this stage, if there is one."""
        found = on_rank_zero(lambda: find_checkpoint(self.storage, self.stage.index, self.fingerprint))
        if found is None:
            self.record.rewind(-1)
            return False
        directory, info = found
        read = on_rank_zero_alone(lambda: read_checkpoint(self.storage, directory, info.state_sha256))
        self.engine.load(*(read or ({}, {})), info.step)
        if info.frozen_before != self.frozen_before:
            raise TrainingError(
                f"checkpoint {directory}: its frozen tensors differ from those on this machine",
                f"Delete {directory.rpartition('/')[0]} to repeat the stage from its start",
            )
        self.position = TrainingProgress(
            step=info.step,
            seconds=info.seconds,
            best_bits_per_byte=math.inf if info.best_bits_per_byte is None else info.best_bits_per_byte,
            evaluations_without_gain=info.evaluations_without_gain,
            first_score=info.first_bits_per_byte,
        )
        if info.data_fingerprint not in ("", self.job.data_fingerprint):  # accepted by whoever resumed the run
            logger.warning("stage %d goes on from step %d on other text", self.stage.index, info.step)
            self.position.best_bits_per_byte, self.position.evaluations_without_gain = math.inf, 0
        self.record.rewind(info.step)
        if info.evaluation_due:
            self._evaluate_if_due()
        return True

    # Finalizing: store what the stage produced, prove that the rest is unchanged, write the manifest last.

    def finalize(self, ended_by: str) -> Manifest:
        """Finalize the trained stage: store it and return its manifest. Collective.

        Args:
            ended_by: what `train` returned.

        Raises:
            TrainingError: a frozen tensor changed, the held-out loss is not finite, or merging the adapters changed
                the logits.
        """
        frozen = self._check_frozen()
        state, with_gradients = self.engine.trainable_state(), self.engine.tensors_with_gradients()
        active = on_rank_zero(lambda: self._check_active(state, with_gradients))
        scores = self._final_scores()
        probe = Probe.of(self.engine.evaluation_model(), self.context.held_out.tokens_NT[:1], self.engine.device)
        trained = without_peft_prefix(state)
        metrics = {**self._final_metrics(scores), "active_check": active}
        return on_rank_zero(lambda: self._store(trained, probe, frozen, metrics, ended_by))

    def _check_frozen(self) -> FrozenCheck:
        after, num_tensors = self.engine.frozen_hash()
        if after != self.frozen_before:
            raise TrainingError(
                f"a frozen tensor changed during {self._where}; the stage was not stored",
                "This is a bug: please report it with the run's configuration",
            )
        return FrozenCheck(num_tensors=num_tensors, before=self.frozen_before, after=after)

    def _check_active(self, state: State, with_gradients: set[str]) -> dict[str, int]:
        """Proof that what was active trained: that nothing did is the fault of freezing that shows least.

        What a zero multiplies (an adapter beside a new one, a block that begins as the identity) has no gradient in
        the first step, so a stage of fewer than `STEPS_TO_MOVE` proves nothing and is only counted.

        Raises:
            TrainingError: a tensor is what it was when the stage began, or never had a gradient.
        """
        after = hashes_of(state)
        still = [name for name, digest in after.items() if digest == self.active_before[name]]
        without = [name for name in after if name not in with_gradients]
        idle = sorted({*still, *without})
        if idle and self.position.step >= STEPS_TO_MOVE:
            reason = "had no gradient in any step" if idle[0] in without else "did not change"
            raise TrainingError(
                f"{len(idle)} of {len(after)} active tensors of {self._where} did not train ({idle[0]} {reason}); the "
                "stage was not stored",
                "Check that its learning rate is not 0; otherwise this is a bug: please report it with the run's "
                "configuration",
            )
        return {
            "num_tensors": len(after),
            "num_changed": len(after) - len(still),
            "num_with_gradients": len(after) - len(without),
        }

    def _final_scores(self) -> dict[str, TextScore]:
        try:
            scores = self.evaluate("end")
        except StopRequested:
            self.save()
            raise
        if not math.isfinite(scores[""].loss):
            raise TrainingError(
                f"the held-out loss of {self._where} is not finite; the stage was not stored", self._gentler()
            )
        return scores

    def _gentler(self) -> str:
        """The command that goes on with a lower learning rate, and with clipped gradients if they were not."""
        key = self.job.rate_keys.get(self.stage.index, "plan.train.learning_rate")
        values = [f"{key}={self.stage.train.learning_rate / 3:.2g}"]
        if not self.settings.gradient_clipping:
            values.append("training.gradient_clipping=1")
        return f"Finished stages are kept; go on with: {resume_command('grow', self.job.run_dir, *values)}"

    @property
    def _where(self) -> str:
        return f"stage {self.stage.index} ({self.stage.name})"

    def _final_metrics(self, scores: Mapping[str, TextScore]) -> dict[str, Any]:
        """What the manifest records beside the blobs; `scores` are those of all held-out text ("") and by source."""
        total, position = scores[""], self.position
        return {
            "eval/loss": total.loss,
            "eval/bits_per_byte": total.bits_per_byte,
            "eval/bits_per_byte_start": position.first_score,
            "eval/bits_per_byte_by_source": {name: score.bits_per_byte for name, score in scores.items() if name},
            "eval/num_bytes": total.num_bytes,
            "seconds": position.seconds,
            "steps": position.step,
            "tokens_per_second": position.step * self.tokens_per_step / max(position.seconds, 1e-9),
            "peak_memory_bytes": peak_memory_bytes(),
            "num_workers": world_size(),
            "pause_seconds": self.pause_seconds,
            "prefix_cached": self.prefix_cached,
            **({"compiled_graphs": num_compiled_graphs()} if self.settings.compile else {}),
            **self._windows_drawn(),
            OWN_MIX: self.has_own_mix,
            **self.memory_metrics(),
            **({"changes": list(self.job.changes)} if self.job.changes else {}),
        }

    def _store(
        self, trained: State, probe: Probe, frozen: FrozenCheck, metrics: dict[str, Any], ended_by: str
    ) -> Manifest:
        """Write blobs, read them back and compare, then write the manifest."""
        stored = store_stage(
            self.store,
            self.stage,
            trained,
            substrate=self.job.substrate.blob,
            parent=self.parent,
            untrained_head=lambda: head_state(self.engine.model.state_dict()),
        )
        manifest = stage_manifest(
            self.stage,
            self.config,
            stored,
            parent=self.parent,
            frozen=frozen,
            num_tokens=self.num_tokens,
            ended_by=ended_by,
            data_fingerprint=self.job.data_fingerprint,
            config_fingerprint=self.job.config_fingerprint,
            metrics=metrics,
            versions=_versions(),
        )
        # Read back from the store: what is finalized is what is checked.
        model = to_worker(assemble(self.store, manifest))
        difference = probe.difference(model)
        if not use_bf16(self.settings):
            manifest.metrics["seal_max_logit_difference"] = difference
            _check_difference(self.stage, difference)
        manifest = manifest.model_copy(update={"samples": tuple(self._samples(model))})
        if any(not self.store.has(blob) for blob in manifest.blobs()):  # a look, since a manifest is a promise
            raise StoreError(
                f"a blob of {self._where} vanished while the stage was being stored",
                "Run the same command with --resume",
            )
        write_manifest(self.storage, manifest)
        return manifest

    def _samples(self, model: GrowtxForCausalLM) -> list[dict[str, str]]:
        """Continuations of the configured prompts, or of the beginnings of held-out windows."""
        settings, tokenizer = self.settings.evaluation, self.context.tokenizer
        windows_NT = self.context.held_out.tokens_NT
        length = min(16, windows_NT.shape[1] // 2)
        chosen = torch.unique(torch.linspace(0, len(windows_NT) - 1, settings.num_samples).round().long())
        prompts = [document_ids(tokenizer, prompt) for prompt in settings.prompts]
        num_hidden = 1 if prompts else 0  # windows are what was trained on, from wherever they begin
        prompts = prompts or [windows_NT[row, :length].tolist() for row in chosen]
        room = max(1, model.config.max_position_embeddings - settings.sample_tokens)
        samples = []
        for number, prompt in enumerate(prompts):
            if self.context.reporter.ask():  # what is trained is stored first; texts can be had any time
                break
            given = prompt[-room:]
            sampling = Sampling(seed=seed_of_choice(self.job.seed, number), temperature=settings.temperature)
            new = continue_text(
                model,
                given,
                settings.sample_tokens,
                sampling,
                eos_ids=eos_token_ids(model.config),
                num_hidden=num_hidden if len(given) == len(prompt) else 0,
            )
            text = visible_text(tokenizer, new, after=given)
            samples.append({"prompt": visible_text(tokenizer, given).lstrip(INCOMPLETE), "text": text})
        return samples


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# Parts of finalizing that need no run.


STEPS_TO_MOVE = 3  # after which every active tensor has had a gradient, whatever the stage began with
MERGE_TOLERANCE = 1e-4  # largest logit difference that merging adapters may cause in fp32


@dataclass(frozen=True)
class Probe:
    """Logits of a model as it trained, adapters unmerged, on a few windows: what the stored model must repeat."""

    tokens_BT: torch.Tensor
    logits_BTV: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, tokens_BT: torch.Tensor, device: torch.device) -> Probe:
        """Collective: with ZeRO stage 3 every rank holds a part of the model."""
        model.eval()
        logits_BTV = model(input_ids=tokens_BT.to(device), use_cache=False).logits
        return cls(tokens_BT, logits_BTV.float().cpu())

    @torch.no_grad()
    def difference(self, model: GrowtxForCausalLM) -> float:
        """Largest absolute difference of the logits of `model` from those recorded."""
        model.eval()
        logits_BTV = model(input_ids=self.tokens_BT.to(model.device), use_cache=False).logits
        return float((logits_BTV.cpu() - self.logits_BTV).abs().max())


def hashes_of(state: State) -> dict[str, str]:
    """sha256 of every tensor."""
    return {name: hash_tensors({name: tensor}) for name, tensor in state.items()}


def _check_difference(stage: Stage, difference: float) -> None:
    if not difference <= MERGE_TOLERANCE:  # also when it is not a number
        raise TrainingError(
            f"stage {stage.index}: the stored model's logits differ by {difference:.2g} from the trained one's",
            f"The stages before it are kept; resume with a lower alpha than {stage.lora.alpha:g}, at "
            "plan.grow.lora.alpha or in plan.stages"
            if stage.lora
            else "The stages before it are kept; resume, and report this if it repeats",
        )


@torch.no_grad()
def _versions() -> dict[str, str]:
    packages = ("torch", "ray", "deepspeed", "transformers", "peft")
    return {
        "python": platform.python_version(),
        "growtx": __version__,
        **{name: version(name) for name in packages},
    }
