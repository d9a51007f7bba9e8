"""DeepSpeed around one stage's model: sharding, steps, and its state in a form independent of sharding.

The state that a checkpoint needs is gathered as one fp32 tensor per parameter (weights, first and second moment),
so that it can be loaded into any number of workers and any ZeRO stage.
"""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from growtx.compat.deepspeed import (
    forget_model,
    fp32_shards,
    gradient_buffers,
    import_deepspeed,
    link_moments,
    local_shard,
    restore_linear,
    torch_optimizer,
)
from growtx.growth.assembly import State
from growtx.growth.forecast import bucket_elements
from growtx.growth.freezing import frozen_parameters, hash_frozen
from growtx.growth.lora import base_model
from growtx.growth.parametrization import scales_of
from growtx.growth.plan import Stage
from growtx.train.distributed import from_rank_zero, has_gpu, rank, world_size
from growtx.train.kernels import use_bf16
from growtx.train.memory import AllocatedBytes, GradientPeak, storage_bytes
from growtx.train.muon import LAYOUT, MatrixLayout, MuonAdamW
from growtx.train.settings import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
EPSILON = 1e-8  # AdamW's
_BLOCK_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def deepspeed_config(settings: TrainingConfig, *, num_workers: int, num_active: int) -> dict[str, Any]:
    """The configuration that DeepSpeed gets; `num_active` parameters train."""
    bucket = bucket_elements(num_active)  # allocated whole
    bf16 = use_bf16(settings)
    stage = settings.sharding(num_workers, bf16=bf16)
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": has_gpu()}
    if stage == 3:
        zero["sub_group_size"] = 10**15  # a group stays one flat tensor, as under ZeRO 1 and 2
        zero.pop("allgather_bucket_size")
        zero["stage3_prefetch_bucket_size"] = bucket
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch(num_workers),
        "gradient_accumulation_steps": settings.num_micro_batches(num_workers),
        "gradient_clipping": settings.gradient_clipping,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32" if settings.sums_in_fp32(num_workers, bf16=bf16) else None},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def parameter_groups(model: nn.Module, stage: Stage, *, zero_stage: int = 1) -> list[dict[str, Any]]:
    """Trainable parameters by optimizer, learning rate, weight decay (none on norms and biases), and schedule."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            values = _group_of(name, parameter, model, stage)
            group = groups.setdefault(tuple(values.items()), {**values, "params": []})
            group["params"].append(parameter)
    for group in groups.values():
        if group.pop("is_muon"):
            shapes = tuple(tuple(parameter.shape) for parameter in group["params"])
            group[LAYOUT] = MatrixLayout(shapes, is_each_divided=zero_stage == 3)
    return list(groups.values())


def _group_of(name: str, parameter: nn.Parameter, model: nn.Module, stage: Stage) -> dict[str, Any]:
    """What a parameter shares with the others of its group."""
    train = stage.train
    scales = scales_of(name, base_model(model).config, stage.parametrization)
    rate = train.learning_rate
    if "lm_head." in name or ".norm." in name:
        rate = train.head_learning_rate or rate
    return {
        "is_muon": train.optimizer == "muon" and is_matrix_of_block(name, parameter),
        "weight_decay": train.weight_decay * scales.weight_decay if parameter.dim() > 1 else 0.0,
        "peak_learning_rate": rate * scales.learning_rate,
        "eps": EPSILON * scales.epsilon,
        "is_new": stage.span is None or is_new(name, stage),
    }


def is_matrix_of_block(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is what Muon is for; adapters are not, whose rank is low anyway."""
    return _BLOCK_NAME.search(name) is not None and "lora_" not in name and parameter.dim() == 2


def is_new(name: str, stage: Stage) -> bool:
    """Whether a parameter trains for the first time in this stage, and so has to warm up."""
    block = _BLOCK_NAME.search(name)
    if block is None:
        return stage.num_blocks_before == 0
    return "lora_" in name or int(block[1]) in stage.new_blocks


_open_zero_3: weakref.WeakSet[TrainEngine] = weakref.WeakSet()  # all of them compute by the function that DeepSpeed put


class TrainEngine:
    """One stage's model under DeepSpeed.

    Args:
        model: with exactly the stage's parameters requiring gradients.
    """

    def __init__(self, model: nn.Module, stage: Stage, settings: TrainingConfig) -> None:
        deepspeed = import_deepspeed()
        self._gather = deepspeed.zero.GatheredParameters
        self._zero_stage = settings.sharding(world_size(), bf16=use_bf16(settings))
        groups = parameter_groups(model, stage, zero_stage=self._zero_stage)
        num_active = sum(parameter.numel() for group in groups for parameter in group["params"])
        muon = {id(parameter) for group in groups if LAYOUT in group for parameter in group["params"]}
        self._muon_names = {name for name, parameter in model.named_parameters() if id(parameter) in muon}
        optimizer = MuonAdamW(
            groups,
            lr=stage.train.learning_rate,
            betas=stage.train.betas,
            fused=True,  # one pass over the weights and their moments; CPUs have a kernel for it too
        )
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(settings, num_workers=world_size(), num_active=num_active),
        )
        if self._zero_stage == 3:
            _open_zero_3.add(self)
        self.model = model
        self.device = self.engine.device
        self.held: AllocatedBytes | None = None  # measured in the first step
        watched = [] if self._zero_stage == 3 else [parameter for _, parameter in self.trainable()]
        self._gradients = GradientPeak(watched)  # ZeRO 3 keeps gradients in buffers of its own
        self._create_moments()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return torch_optimizer(self.engine)

    @property
    def _masters(self) -> list[torch.Tensor]:
        """This rank's fp32 weights, one tensor for each group, which is what the optimizer steps."""
        return fp32_shards(self.engine, self._zero_stage)

    def step(
        self,
        micro_batches: Iterable[dict[str, Any]],
        num_targets: float,
        factor: float,
        factor_of_old: float | None = None,
    ) -> torch.Tensor:
        """One optimizer step.

        Args:
            micro_batches: keyword arguments of the model's forward, with `labels`.
            num_targets: predicted tokens of a micro batch on average; dividing by it, and not by the labels that
                happen to be there, makes gradients independent of how the batch is split.
            factor: multiplies the peak learning rates.
            factor_of_old: those of what trained in an earlier stage, too; None: the same.

        Returns:
            [2], on the device: summed nats and number of predicted tokens of this worker.
        """
        for group in self._optimizer.param_groups:
            of_old = factor if factor_of_old is None else factor_of_old
            group["lr"] = group["peak_learning_rate"] * (factor if group["is_new"] else of_old)
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            output = self.engine(**batch, num_items_in_batch=num_targets)
            self.engine.backward(output.loss)
            if self.held is None and self.engine.is_gradient_accumulation_boundary():
                self.held = self._measure()
                self._gradients.stop()
            self.engine.step()
            totals[0] += output.loss.detach() * num_targets
            totals[1] += (batch["labels"][:, 1:] >= 0).sum()
        return totals

    def _measure(self) -> AllocatedBytes:
        """What this rank holds on its device in a step."""
        parameters = list(self.model.parameters())
        moments = [state[key] for state in self._optimizer.state.values() for key in MOMENTS if key in state]
        weights = [local_shard(parameter) for parameter in parameters]
        optimizer = [part for part in (*self._masters, *moments) if part.device == self.device]
        return AllocatedBytes(storage_bytes(weights), self._gradient_bytes(), storage_bytes(optimizer))

    def _gradient_bytes(self) -> int:
        if self._zero_stage == 3:
            return storage_bytes(gradient_buffers(self.engine))
        return self._gradients.peak

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def trainable_state(self) -> State:
        """fp32 weights of everything that trains, whole, on the host. Collective; empty except on rank 0."""
        from deepspeed.utils import safe_get_full_fp32_param

        return self._collect(safe_get_full_fp32_param)

    def optimizer_state(self) -> dict[str, State]:
        """Both Adam moments, whole, on the host; of what Muon steps the first. Collective; empty except on rank 0."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return {key: self._collect(lambda p, key=key: safe_get_full_optimizer_state(p, key), key) for key in MOMENTS}

    def tensors_with_gradients(self) -> set[str]:
        """Names of active tensors that had a gradient other than zero in any step. Collective.

        Adam's second moment is a sum of squares that no step takes back to zero, and Muon's momentum of whole matrices
        does not become zero either.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        last = ((name, safe_get_full_optimizer_state(p, self._moments_of(name)[-1])) for name, p in self.trainable())
        return {name for name, moment in last if bool(moment.any())}

    def _moments_of(self, name: str) -> tuple[str, ...]:
        """What the optimizer keeps of a parameter: Muon has no second moment."""
        return MOMENTS[:1] if name in self._muon_names else MOMENTS

    def _collect(self, read: Any, moment: str | None = None) -> State:
        state: State = {}
        for name, parameter in self.trainable():
            if moment is not None and moment not in self._moments_of(name):
                continue
            value = read(parameter)
            if rank() == 0:
                state[name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
        return state

    def load(self, weights: State, moments: dict[str, State], num_steps: int) -> None:
        """Continue from gathered state after `num_steps` optimizer steps. Collective; only that of rank 0 counts."""
        for state in self._optimizer.state.values():
            state["step"].fill_(num_steps)
        for name, parameter in self.trainable():
            # DeepSpeed steps a copy of each weight and writes the step's result into the model: both are set here,
            # or the first forward pass would run on the weights from before.
            with self.gathered([parameter], modify=True):
                weight = from_rank_zero(weights[name] if rank() == 0 else None, parameter.data)
                parameter.data.copy_(weight)
            self._set(parameter, weight)
            for key in self._moments_of(name):
                self._set(parameter, from_rank_zero(moments[key][name] if rank() == 0 else None, weight), key)

    def _set(self, parameter: nn.Parameter, value: torch.Tensor, moment: str | None = None) -> None:
        """Write a whole tensor into this rank's part of the optimizer's copy of a weight, or of its moment."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if self._zero_stage == 3:  # the setter of whole tensors fails where they do not divide by the number of ranks
            size = local_shard(parameter).numel()
            padded = F.pad(value.flatten(), (0, size * world_size() - value.numel()))
            value = padded[rank() * size : (rank() + 1) * size]
            set_weight, set_moment = safe_set_local_fp32_param, safe_set_local_optimizer_state
        else:
            set_weight, set_moment = safe_set_full_fp32_param, safe_set_full_optimizer_state
        if moment is None:
            set_weight(parameter, value)
        else:
            set_moment(parameter, value, moment)

    def _create_moments(self) -> None:
        """Create Adam's state, which torch only does in the first step: loading and saving need it earlier."""
        for shard, group in zip(self._masters, self._optimizer.param_groups, strict=True):
            keys = MOMENTS[:1] if LAYOUT in group else MOMENTS
            self._optimizer.state[shard] = {key: torch.zeros_like(shard) for key in keys}
            # The fused kernel reads it where the moments are.
            self._optimizer.state[shard]["step"] = torch.tensor(0.0, device=shard.device)
        link_moments(self.engine, self._zero_stage)

    @contextmanager
    def gathered(self, parameters: list[nn.Parameter], *, modify: bool = False) -> Iterator[None]:
        """Temporarily make partitioned parameters whole on every rank; `modify` keeps what is written to them."""
        if self._zero_stage == 3:
            with self._gather(parameters, modifier_rank=0 if modify else None):
                yield
        else:
            yield

    def frozen_hash(self) -> tuple[str, int]:
        """One sha256 over all frozen tensors as they are now, and their number. Collective."""

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for name, parameter in frozen_parameters(self.model):
                with self.gathered([parameter]):
                    yield name, parameter.detach()

        return hash_frozen(tensors())

    def evaluation_model(self) -> nn.Module:
        """The module to call without gradients; under ZeRO-3 its hooks gather what it needs."""
        return self.engine.module  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the model, its gradients and the optimizer, so that the next stage can start in this process."""
        self.engine.destroy()
        if self._zero_stage == 3:
            forget_model(self.model)
            _open_zero_3.discard(self)
            if not _open_zero_3:
                restore_linear()
        del self.engine, self.model
        gc.collect()  # model and engine refer to each other
