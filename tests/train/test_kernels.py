"""What a worker cannot compute with is said in a sentence; what it can gives the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.compat.torch import compile_blocks, compiler_errors, num_compiled_graphs
from growtx.exceptions import ConfigError, ResourceError, TrainingError
from growtx.growth.assembly import build_stage_model
from growtx.growth.freezing import prepare_for_stage
from growtx.train import distributed, kernels
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
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are traced and guarded as usual, and run as they are: no C++ is compiled."""
    monkeypatch.setattr(kernels, "check_compiler", lambda _: None)
    monkeypatch.setattr(kernels, "compile_blocks", lambda blocks: compile_blocks(blocks, backend="eager"))
    names = ("recompile_limit", "fail_on_recompile_limit_hit")
    before = {name: getattr(torch._dynamo.config, name) for name in names}
    yield
    torch.compiler.reset()
    for name, value in before.items():
        setattr(torch._dynamo.config, name, value)


def step_compiled(num_blocks: int, num_new: int) -> int:
    """Train and evaluate a little; returns the number of graphs."""
    below = [{"add": num_blocks - num_new}] if num_blocks > num_new else []
    stage = tiny.stages(stages=[*below, {"add": num_new}])[-1]
    (whole,) = tiny.stages(stages=[{"add": num_blocks}])
    model = build_stage_model(tiny.config(num_blocks), whole, None, tiny.substrate(), seed=0)
    wrapped = prepare_for_stage(model, stage, seed=0)
    set_kernels(model, TrainingConfig(compile=True), CPU)
    tokens_BT = torch.randint(0, tiny.VOCAB_SIZE, (2, 12))
    with compiler_errors():
        wrapped.train()(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
        with torch.no_grad():
            wrapped.eval()(input_ids=tokens_BT[:1], labels=tokens_BT[:1])
    return num_compiled_graphs()


@pytest.mark.usefixtures("eager_backend")
def test_every_stage_compiles_afresh_and_depth_costs_no_graphs() -> None:
    """Dynamo's limit is 8 graphs in a process, and past it blocks run uncompiled without a word."""
    assert step_compiled(2, 2) == 3
    assert [step_compiled(depth, 1) for depth in (3, 6, 9)] == [4, 4, 4]


@pytest.mark.usefixtures("eager_backend")
def test_blocks_that_would_run_uncompiled_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growtx.compat.torch.MOST_GRAPHS", 1)
    with pytest.raises(TrainingError, match=r"torch\.compile made 1 graphs .* Set training\.compile=false and resume"):
        step_compiled(3, 1)


def test_a_finished_stage_is_checked_on_the_gpu_if_it_fits_beside_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, moved = torch.nn.Linear(256, 256), []
    num_bytes = 4 * (256 * 256 + 256)
    monkeypatch.setattr(distributed, "_device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moved.append(device) or self)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: num_bytes)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: num_bytes // 2)
    for free, wanted in ((num_bytes // 2, 0), (num_bytes, 1), (10 * num_bytes, 2)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 20 * num_bytes))
        assert distributed.to_worker(model) is model
        assert moved == [torch.device("cuda", 0)] * wanted


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
