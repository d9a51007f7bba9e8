"""What DeepSpeed does not offer but training needs of it: every private part that is touched, and nothing else.

ZeRO 1 and 2 have one optimizer class, ZeRO 3 another with other names: hence `zero_stage`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

SEEN = "0.19.8"
_ZERO_12 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
_ZERO_3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
TOUCHED = (
    ("deepspeed.comm.torch:build_shm_op", "keep it from compiling a kernel of its inference, which takes two minutes"),
    ('deepspeed.utils.logging:"DeepSpeed"', "silence its messages by the name of their logger"),
    (f"{_ZERO_12}.self.optimizer", "set the learning rates and Adam's state of torch's optimizer inside ZeRO's"),
    (f"{_ZERO_3}.self.optimizer", "set the learning rates and Adam's state of torch's optimizer inside ZeRO's"),
    (f"{_ZERO_12}.self.single_partition_of_fp32_groups", "find the fp32 weights that the optimizer steps"),
    (f"{_ZERO_3}.self.fp32_partitioned_groups_flat", "find the fp32 weights that the optimizer steps"),
    ('deepspeed.runtime.zero.partition_parameters:"ds_tensor"', "know this rank's part of a parameter under ZeRO 3"),
    (f"{_ZERO_3}.self.ipg_buckets", "measure the memory of gradients under ZeRO 3"),
    ("deepspeed.runtime.zero.stage3:IPGBucketZ3.self.buffer", "measure the memory of gradients under ZeRO 3"),
    (f"{_ZERO_3}.self.grad_partitions_flat_buffer", "measure the memory of gradients under ZeRO 3"),
    (f"{_ZERO_12}._lazy_init_hp_params_optimizer_state", "link weights to their moments before the first step"),
    ("deepspeed.runtime.zero.parameter_offload:FWD_MODULE_STACK", "free the model of a stage that has ended"),
    (
        "deepspeed.runtime.zero.partitioned_param_coordinator:"
        "PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release",
        "free the model of a stage that has ended",
    ),
    (
        'deepspeed.runtime.zero.partition_parameters:"InsertPostInitMethodToModuleSubClasses.linear_bk"',
        "give torch its own linear function back",
    ),
)


def import_deepspeed() -> Any:
    """Import DeepSpeed without its chatter and without compiling a C++ kernel that only its inference uses."""
    import logging
    import sys
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    import deepspeed
    import deepspeed.comm.comm

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that `deepspeed.initialize` was given: ZeRO's own wraps it."""
    return engine.optimizer.optimizer  # type: ignore[no-any-return]


def fp32_shards(engine: Any, zero_stage: int) -> list[torch.Tensor]:
    """This rank's fp32 weights, one tensor for each group, which is what the optimizer steps."""
    name = "fp32_partitioned_groups_flat" if zero_stage == 3 else "single_partition_of_fp32_groups"
    return getattr(engine.optimizer, name)  # type: ignore[no-any-return]


def local_shard(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's part of a parameter: all of it, except under ZeRO 3, which leaves an empty tensor in its place."""
    return getattr(parameter, "ds_tensor", parameter)


def gradient_buffers(engine: Any) -> list[torch.Tensor]:
    """Where ZeRO 3 keeps gradients; it has no `grad` at the parameters."""
    buckets = [bucket.buffer for bucket in engine.optimizer.ipg_buckets.values()]
    return [engine.optimizer.grad_partitions_flat_buffer, *buckets]


def link_moments(engine: Any, zero_stage: int) -> None:
    """Let ZeRO 1 and 2 find each parameter's moments in the optimizer's state, which they else do in the first step.

    They step one group of parameters after the other, but link only once, after the first group: whatever state is
    not there by then is never found. ZeRO 3 looks at every access.
    """
    if zero_stage != 3:
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def forget_model(model: nn.Module) -> None:
    """Remove a model from what ZeRO 3 keeps until the process ends: a list, and a cache below a decorator."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module is not model]
    method = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    for cached in inspect.getclosurevars(method).nonlocals.values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def restore_linear() -> None:
    """Give torch its own `F.linear` back: ZeRO 3 replaces it by one that other stages should not use."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patched
    from torch.nn import functional as F

    F.linear = Patched.linear_bk
