"""Held-out evaluation: the same windows every time, counted once, by source and together."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from growtx.train.held_out import HeldOut
from tests.train.windows import LENGTH, packed

pytestmark = pytest.mark.usefixtures("process_group")
BYTES_V = torch.arange(100) % 4
CPU = torch.device("cpu")


class Knowing(nn.Module):
    """A model whose nats for a token are the number of its window's first token."""

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, use_cache: bool, skip_logits: bool
    ) -> SimpleNamespace:
        assert skip_logits and not self.training and not use_cache and not torch.is_grad_enabled()
        counted = labels[:, 1:] >= 0
        return SimpleNamespace(token_nll=input_ids[:, :1].float() * counted)


def held_out(num_windows: int = 8, **data: tuple[float, ...]) -> HeldOut:
    return HeldOut(packed(**data), num_windows=num_windows, bytes_V=BYTES_V)  # type: ignore[arg-type]


def test_windows_are_shared_out_by_weight_and_are_always_the_first() -> None:
    assert held_out(8).tokens_NT[:, 0].tolist() == [50, 51, 52, 53, 54, 55, 57, 58]
    assert held_out(1).tokens_NT[:, 0].tolist() == [50, 57]  # every source is measured
    assert len(held_out(1000).tokens_NT) == 12  # no more than there are


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 8, 64])
def test_scores_do_not_depend_on_the_batch_size(micro_batch: int) -> None:
    scores = held_out(8).evaluate(Knowing(), micro_batch, CPU)
    num_tokens = LENGTH - 2  # the first is not predicted, the last is padding
    first, second = range(50, 56), range(57, 59)
    for name, windows in (("source-0", first), ("source-1", second), ("", [*first, *second])):
        assert scores[name].num_tokens == num_tokens * len(windows)
        assert scores[name].loss == pytest.approx(sum(windows) / len(windows))
        assert scores[name].num_bytes == 3 * num_tokens * len(windows)  # token 3 has three bytes
        assert scores[name].bits_per_byte == pytest.approx(scores[name].loss / math.log(2) / 3)


def test_a_source_with_nothing_held_out_is_left_out_of_the_scores() -> None:
    scores = held_out(8, validation=(7, 0)).evaluate(Knowing(), 4, CPU)
    assert scores.keys() == {"source-0", ""} and math.isfinite(scores[""].bits_per_byte)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(training: bool) -> None:
    model = Knowing().train(training)
    held_out().evaluate(model, 4, CPU)
    assert model.training is training
