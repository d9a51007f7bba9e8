"""What `growtx plan` prints beside the figures: the model that they come from, of this very configuration."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from growtx.exceptions import BudgetError
from growtx.run.config import load_run_config
from growtx.run.forecast import forecast_tables


def printed(preset: str, *overrides: str) -> str:
    """The tables as one line of text."""
    console = Console(file=io.StringIO(), width=400, record=True)
    console.print(*forecast_tables(load_run_config(preset, list(overrides))))
    return " ".join(console.export_text().split())


@pytest.mark.parametrize(
    ("preset", "overrides", "statements"),
    [
        (
            "pgt-8x24",
            [],
            [
                "Weights: 2 bytes x total / 8 workers.",
                "Gradients: 2 bytes x active / 8 workers.",
                "Optimizer: 12 bytes x active / 8 workers (fp32 weights, two moments).",
                "2 x 1024 tokens at a time, only the blocks' inputs kept, the rest recomputed",
                "forward passes counted twice where activations are recomputed",
                "Hours: at 35% of 165 TFLOPs on each worker, an assumption",
            ],
        ),
        (
            "pgt",
            [],
            [
                "Weights: 2 bytes x total.",
                "Gradients: 2 bytes x active / 8 workers.",
                "all kept",
                "Hours: at 35% of 990 TFLOPs",
            ],
        ),
        (
            "demo",
            [],
            [
                "Weights: 4 bytes x total.",
                "Gradients: 4 bytes x active.",
                "Optimizer: 12 bytes x active / 2 workers",
                "Hours: only if resources.accelerator is set.",
            ],
        ),
        ("demo", ["training.offload_optimizer=true"], ["Optimizer: in the host's memory"]),
        ("demo", ["plan.train.optimizer=muon"], ["and of Muon", "two moments; one, so 8 bytes, where Muon steps)"]),
    ],
)
def test_the_model_behind_the_figures_is_stated(preset: str, overrides: list[str], statements: list[str]) -> None:
    text = printed(preset, *overrides)
    for statement in statements:
        assert statement in text


def test_a_plan_that_does_not_fit_its_gpu_is_refused_with_what_it_needs() -> None:
    with pytest.raises(BudgetError, match=r"stage 1 needs .* GiB on each worker, but 24 GB GPU has only 4\. Raise"):
        printed("pgt-1x24", "resources.accelerator.memory_gib=4")
