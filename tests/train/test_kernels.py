"""What a worker cannot compute with is said in a sentence; what it can gives the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from growtx.exceptions import ConfigError
from growtx.growth.assembly import build_stage_model
from growtx.train import kernels
from growtx.train.kernels import check_compiler, loss_kernel, set_kernels
from growtx.train.settings import TrainingConfig
from tests import tiny

CPU = torch.device("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, liger: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
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
