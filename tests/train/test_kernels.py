"""What a worker cannot compute with is said in a sentence; what it can gives the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.exceptions import ConfigError, ResourceError
from growtx.growth.assembly import build_stage_model
from growtx.train import kernels
from growtx.train.distributed import has_gpu, use_device, worker_device
from growtx.train.engine import deepspeed_config
from growtx.train.kernels import check_compiler, check_precision, loss_kernel, set_kernels, use_bf16
from growtx.train.memory import peak_memory_bytes, reset_peak_memory
from growtx.train.settings import TrainingConfig
from tests import tiny

CPU = torch.device("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, liger: bool) -> None:
    monkeypatch.setattr(kernels, "has_gpu", lambda: gpu)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name if liger else None)


@pytest.mark.parametrize(
    ("gpu", "liger", "expected"),
    [(True, True, "liger"), (True, False, "chunked"), (False, True, "chunked"), (False, False, "chunked")],
)
def test_the_loss_kernel_is_the_fused_one_on_gpus_that_have_it_and_ours_elsewhere(
    gpu: bool, liger: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpu=gpu, liger=liger)
    assert loss_kernel(TrainingConfig()) == expected
    assert loss_kernel(TrainingConfig(loss_kernel="plain")) == "plain"


@pytest.mark.parametrize(("gpu", "missing"), [(False, "this worker has none"), (True, "is not installed")])
def test_the_fused_kernel_is_refused_where_it_cannot_run(
    gpu: bool, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpu=gpu, liger=not gpu)
    with pytest.raises(ConfigError, match=rf"training\.loss_kernel=liger: .*{missing}"):
        loss_kernel(TrainingConfig(loss_kernel="liger"))


@pytest.fixture
def first_check() -> Iterator[None]:
    """No check was made in this process before, and none of this test is remembered."""
    check_compiler.cache_clear()
    yield
    check_compiler.cache_clear()


@pytest.mark.usefixtures("first_check")
def test_a_machine_without_a_compiler_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Any) -> Any:
        def call(_: torch.Tensor) -> None:
            raise torch._inductor.exc.InvalidCxxCompiler("no-compiler")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    (stage,) = tiny.stages(stages=[{"add": 1}])
    model = build_stage_model(tiny.config(1), stage, None, tiny.substrate(), seed=0)
    with pytest.raises(ConfigError, match=r"training\.compile: torch\.compile does not work .*[^.]\. Install a C\+\+"):
        set_kernels(model, TrainingConfig(compile=True), CPU)
    set_kernels(model, TrainingConfig(), CPU)  # nothing is compiled, so nothing is needed


@pytest.fixture
def machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torch says on one; nothing may be put there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    yield
    use_device(use_gpu=False)


@pytest.mark.usefixtures("machine_with_a_gpu")
def test_one_place_decides_the_device_whatever_gpus_the_machine_has() -> None:
    """Ray shows every GPU of a machine to workers that asked for none."""
    assert use_device(use_gpu=False) == worker_device() == CPU and not has_gpu()
    assert not use_bf16(TrainingConfig()) and loss_kernel(TrainingConfig()) == "chunked"
    reset_peak_memory()
    assert peak_memory_bytes() > 2**20, "the host's"
    with_offload = TrainingConfig(offload_optimizer=True)
    zero = deepspeed_config(with_offload, num_workers=1, num_active=8)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert use_device(use_gpu=True) == torch.device("cuda", 0) and has_gpu() and use_bf16(TrainingConfig())


def test_a_worker_that_was_promised_a_gpu_and_sees_none_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"this worker sees no GPU\. Install a build of torch .*use_gpu=false"):
        use_device(use_gpu=True)
    assert worker_device() == CPU


@pytest.mark.usefixtures("machine_with_a_gpu")
def test_bf16_is_refused_on_gpus_that_would_imitate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    check_precision(TrainingConfig(precision="bf16"))  # on the CPU it is only slow
    use_device(use_gpu=True)
    check_precision(TrainingConfig(precision="fp32"))
    with pytest.raises(ConfigError, match=r"precision=auto: Tesla V100 does not compute in bf16\. Set training\.prec"):
        check_precision(TrainingConfig())


def test_nothing_else_asks_torch_where_to_compute() -> None:
    """Whatever asks for itself finds the GPUs of a machine whose workers were told to use none."""
    asking = [
        path for path in (Path(__file__).parents[2] / "growtx").rglob("*.py") if "cuda.is_available" in path.read_text()
    ]
    assert [path.name for path in asking] == ["distributed.py"]
