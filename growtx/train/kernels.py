"""How a stage's model computes: precision, the kernel of its loss, compiled blocks, activation checkpointing."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from growtx.compat.torch import compile_blocks
from growtx.exceptions import ConfigError
from growtx.growth.freezing import checkpoint_activations
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.train.distributed import has_gpu
from growtx.train.settings import TrainingConfig


def use_bf16(settings: TrainingConfig) -> bool:
    """Whether this worker computes in bf16."""
    return settings.uses_bf16(has_gpu=has_gpu())


def loss_kernel(settings: TrainingConfig) -> str:
    """The cross-entropy to train with, as `GrowtxConfig` names it.

    Raises:
        ConfigError: liger's is requested and cannot run here.
    """
    has_liger = find_spec("liger_kernel") is not None
    if settings.loss_kernel == "auto":
        return "liger" if has_gpu() and has_liger else "chunked"
    if settings.loss_kernel == "liger":
        if not has_gpu():
            raise ConfigError(
                "training.loss_kernel=liger: its fused kernel runs on GPUs, but this worker has none",
                "Set training.loss_kernel=auto",
            )
        if not has_liger:
            raise ConfigError(
                "training.loss_kernel=liger: liger-kernel is not installed on this worker",
                "Run pip install liger-kernel there, or set training.loss_kernel=auto",
            )
    return settings.loss_kernel


def check_precision(settings: TrainingConfig) -> None:
    """Refuse bf16 on GPUs that would only imitate it, many times slower.

    Raises:
        ConfigError: this worker's does.
    """
    if use_bf16(settings) and has_gpu() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"training.precision={settings.precision}: {torch.cuda.get_device_name()} does not compute in bf16",
            "Set training.precision=fp32, or choose newer GPUs with resources.accelerator_type",
        )


@cache
def check_compiler(device: torch.device) -> None:
    """Compile something small, because whether torch.compile works only shows when it runs.

    Raises:
        ConfigError: it cannot, usually for lack of a C++ compiler or of Python's headers.
    """
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except RuntimeError as error:  # all of dynamo's and inductor's errors are
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"training.compile: torch.compile does not work on this worker ({reason})",
            "Install a C++ compiler and Python's headers there, or set training.compile=false",
        ) from error


def set_kernels(model: GrowtxForCausalLM, settings: TrainingConfig, device: torch.device) -> None:
    """Let a model compute as the settings say.

    Raises:
        ConfigError: this worker cannot.
    """
    check_precision(settings)
    model.config.loss_kernel = loss_kernel(settings)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    if settings.compile:
        check_compiler(device)
        compile_blocks(list(model.model.layers))
