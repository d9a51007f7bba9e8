from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from growtx.exceptions import ConfigError
from growtx.models import GrowtxConfig
from growtx.models.loss import LMHead, checkpointed_cross_entropy, chunk_rows, chunked_cross_entropy, shift_labels

NUM_ROWS = 37  # not a multiple of any chunk


@pytest.fixture
def head(make_config: Callable[..., GrowtxConfig]) -> LMHead:
    head = LMHead(make_config()).double()
    torch.nn.init.normal_(head.weight)
    return head


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(1, NUM_ROWS, 32, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def targets() -> torch.Tensor:
    targets = torch.randint(0, 97, (1, NUM_ROWS))
    targets[0, ::5] = -100
    return targets


def plain(hidden: torch.Tensor, head: LMHead, targets: torch.Tensor) -> list[torch.Tensor]:
    loss = F.cross_entropy(head(hidden[0]), targets[0], reduction="sum")
    return [loss, *torch.autograd.grad(loss * 3, [hidden, head.weight, head.bias])]


@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_chunked_loss_and_gradients_equal_the_plain_ones(
    hidden: torch.Tensor, head: LMHead, targets: torch.Tensor, chunk: int
) -> None:
    loss, nll = chunked_cross_entropy(hidden, head, targets, chunk=chunk)
    gradients = torch.autograd.grad(loss * 3, [hidden, head.weight, head.bias])
    for ours, expected in zip([loss, *gradients], plain(hidden, head, targets), strict=True):
        torch.testing.assert_close(ours, expected)
    assert nll is not None
    torch.testing.assert_close(nll.sum(), loss)
    assert nll[0, ::5].abs().max() == 0


def test_any_head_module_gives_the_same_through_recomputation(
    hidden: torch.Tensor, head: LMHead, targets: torch.Tensor
) -> None:
    wrapped = torch.nn.Sequential(head)
    loss, nll = chunked_cross_entropy(hidden, wrapped, targets, chunk=8)
    gradients = torch.autograd.grad(loss * 3, [hidden, head.weight, head.bias])
    for ours, expected in zip([loss, *gradients], plain(hidden, head, targets), strict=True):
        torch.testing.assert_close(ours, expected)
    assert nll is not None and nll.shape == targets.shape


def test_frozen_head_gets_no_gradient(hidden: torch.Tensor, head: LMHead, targets: torch.Tensor) -> None:
    head.requires_grad_(False)
    loss, _ = chunked_cross_entropy(hidden, head, targets)
    loss.backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


def test_no_tensor_of_a_row_per_position_and_a_column_per_token_is_ever_made(
    hidden: torch.Tensor, head: LMHead, targets: torch.Tensor
) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            sizes.extend(r.numel() for r in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(r))
            return result

    with Recorder():
        for compute in (head, torch.nn.Sequential(head)):
            chunked_cross_entropy(hidden, compute, targets, chunk=8)[0].backward()
    assert max(sizes) < NUM_ROWS * 97


def test_half_precision_gradients_are_summed_in_full_precision(make_config: Callable[..., GrowtxConfig]) -> None:
    head = LMHead(make_config()).bfloat16()
    hidden = torch.randn(1, 512, 32, dtype=torch.bfloat16)
    targets = torch.randint(0, 97, (1, 512))
    exact = LMHead(make_config())
    exact.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    for module, states in ((head, hidden), (exact, hidden.float())):
        chunked_cross_entropy(states, module, targets, chunk=4)[0].backward()
    error = (head.weight.grad.float() - exact.weight.grad).norm() / exact.weight.grad.norm()
    assert error < 0.005


def test_differentiating_twice_is_refused(hidden: torch.Tensor, head: LMHead, targets: torch.Tensor) -> None:
    loss, _ = chunked_cross_entropy(hidden, head, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        loss.backward()


def test_labels_are_shifted_by_one_and_the_last_position_predicts_nothing() -> None:
    assert shift_labels(torch.tensor([[4, 5, 6]])).tolist() == [[5, 6, -100]]


def test_several_states_are_chunked_together(targets: torch.Tensor) -> None:
    states = torch.randn(2, NUM_ROWS, 97)
    loss, _ = checkpointed_cross_entropy(lambda a, b: a + b, states.unbind(0), targets[0], chunk=8)
    torch.testing.assert_close(loss, F.cross_entropy(states.sum(0), targets[0], reduction="sum"))


def test_missing_liger_kernel_is_named(
    make_config: Callable[..., GrowtxConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from growtx.models.loss import _liger_cross_entropy

    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.fused_linear_cross_entropy", None)
    with pytest.raises(ConfigError, match="Install liger-kernel"):
        _liger_cross_entropy(LMHead(make_config()), torch.zeros(1, 32), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("vocab_size", "gib", "rows"),
    [(65_536, None, 256), (65_536, 80, 2560), (131_072, 80, 1280), (131_072, 8, 256), (1_024, 80, 4096)],
)
def test_rows_of_a_chunk_follow_from_the_device_and_its_memory(vocab_size: int, gib: int | None, rows: int) -> None:
    assert chunk_rows(vocab_size, None if gib is None else gib * 2**30) == rows


def test_the_head_takes_as_many_rows_as_its_device_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by the sizes of the products that it makes, with the memory of a GPU told to a CPU."""
    head, hidden_ND = (
        LMHead(GrowtxConfig(hidden_size=8, num_attention_heads=2, vocab_size=16)),
        torch.randn(3000, 8, requires_grad=True),
    )
    targets_N = torch.randint(16, (3000,))
    seen: list[int] = []
    plain = torch.nn.functional.linear

    def linear(rows: torch.Tensor, *arguments: Any) -> torch.Tensor:
        seen.append(len(rows))
        return plain(rows, *arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    on_cpu, _ = head(hidden_ND, targets=targets_N)
    assert seen == [256] * 11 + [184]
    seen.clear()
    monkeypatch.setattr("growtx.models.loss.memory_of_gpu", lambda device: 2**20)
    monkeypatch.setattr("growtx.models.loss.CHUNK_SHARE", 1 / 4)
    on_gpu, _ = head(hidden_ND, targets=targets_N)
    assert seen == [1280, 1280, 440] and torch.allclose(on_cpu, on_gpu)
