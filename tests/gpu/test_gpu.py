"""What only a GPU can show, the gravest first: `make test-gpu` on one card of 80 GB, about ten minutes.

Without a GPU they are skipped; `test_gpu_tests.py` then runs them on the CPU in small sizes, so that they are known to
run at all.

Shapes: B windows, T positions, C texts, V vocabulary.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks.gpu import CHUNKS, HEAD_ROWS, HEADS, STEPS, Figure, card, head_figures, small, step_figures
from growtx.data.tokenizer import TokenizerConfig, build_tokenizer
from growtx.growth.results import load_model
from growtx.models import GrowtxConfig, GrowtxForCausalLM
from growtx.run.grow import grow
from growtx.sampling import Choice, Sampling, add_gumbel_noise, choose
from growtx.serving.engine import Engines
from growtx.serving.requests import Generation
from growtx.storage import Storage
from growtx.store.manifest import read_lineage
from growtx.store.runs import read_metrics
from growtx.store.verify import verify
from growtx.train.distributed import alone, has_gpu, use_device, worker_device
from growtx.train.engine import TrainEngine
from tests import tiny
from tests.run.configs import config, write_corpus
from tests.train.engines import make_engine, stage

IS_DRY = os.environ.get("GROWTX_GPU_TESTS") == "dry"
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    if not (IS_DRY or torch.cuda.is_available()):
        pytest.skip("there is no GPU")
    with alone(use_gpu=not IS_DRY):
        use_device(use_gpu=not IS_DRY)
        yield


def losses(engine: TrainEngine, num_steps: int, *, num_windows: int = 4, micro_batch: int = 2) -> list[float]:
    """Nats a token of each step; the engine is closed."""
    found = []
    for step in range(num_steps):
        tokens_BT = tiny.tokens(num_windows, seed=step).to(worker_device())
        parts = [{"input_ids": part, "labels": part} for part in torch.split(tokens_BT, micro_batch)]
        nats, num_tokens = engine.step(parts, micro_batch * (tiny.CONTEXT_LENGTH - 1), 1.0).tolist()
        found.append(nats / num_tokens)
    engine.close()
    return found


def test_everything_computes_where_it_was_asked_to() -> None:
    engine = make_engine(1)
    places = {tensor.device.type for tensor in engine.model.parameters()}
    assert places == {worker_device().type} == {"cpu" if IS_DRY else "cuda"}
    assert engine.device.type == worker_device().type and has_gpu() != IS_DRY
    engine.close()


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_twenty_losses_in_bf16_follow_those_in_fp32(zero_stage: int) -> None:
    exact = losses(make_engine(zero_stage, precision="fp32"), 20)
    rounded = losses(make_engine(zero_stage, precision="bf16"), 20)
    assert rounded == pytest.approx(exact, rel=0.02) and exact[-1] < exact[0]


# One micro batch of 256 windows is 28 % off in the bf16 of the CPU, and why is not known: for a GPU to show.
@pytest.mark.parametrize("num_micro_batches", [16, 256] if IS_DRY else [1, 16, 256])
def test_gradients_of_many_micro_batches_add_up(num_micro_batches: int) -> None:
    moments = []
    for precision in ("fp32", "bf16"):
        many = {"global_batch_size": 256, "micro_batch_size": 256 // num_micro_batches}
        engine = make_engine(2, stage(lora=None), precision=precision, **many)
        parts = torch.split(tiny.tokens(256).to(worker_device()), 256 // num_micro_batches)
        num_targets = (256 // num_micro_batches) * (tiny.CONTEXT_LENGTH - 1)
        engine.step([{"input_ids": part, "labels": part} for part in parts], num_targets, 1.0)
        moments.append(torch.cat([moment.flatten() for moment in engine.optimizer_state()["exp_avg"].values()]))
        engine.close()
    exact, rounded = moments
    assert float((rounded - exact).norm() / exact.norm()) < 0.01


def test_three_stages_with_lora_grow_are_proven_and_go_on(tmp_path: Path) -> None:
    settings = config(
        write_corpus(tmp_path),
        cache_dir=str(tmp_path / "cache"),
        plan={
            "stages": [{"add": 1}, {"add": 1}, {"add": 1, "lora": {"rank": 2}}],
            "train": {"steps": 6},
        },
        training={"global_batch_size": 4, "log_every_steps": 1, "checkpoint": {"every_steps": 2}},
        resources={"num_workers": 1, "use_gpu": not IS_DRY},
    )
    stopped = str(tmp_path / "stopped")
    whole = grow(settings, str(tmp_path / "whole"), console=Console(quiet=True), here=True)
    assert verify(whole.run_dir).is_intact
    for manifest in read_lineage(Storage(whole.run_dir)):
        assert manifest.frozen_check.before == manifest.frozen_check.after
    again = grow(settings, stopped, console=Console(quiet=True), here=True)
    rows = [[row["train/loss"] for row in read_metrics(Storage(run)) if "train/loss" in row]
            for run in (whole.run_dir, again.run_dir)]  # fmt: skip
    assert rows[0] == pytest.approx(rows[1], rel=1e-3) and len(rows[0]) == 18
    model, tokenizer = load_model(whole.run_dir)
    assert model.config.num_hidden_layers == 3 and len(tokenizer) == model.config.vocab_size


def test_a_state_is_saved_loaded_and_gives_the_next_loss() -> None:
    engine = make_engine(2)
    tokens_BT = tiny.tokens(4).to(worker_device())
    parts = [{"input_ids": part, "labels": part} for part in torch.split(tokens_BT, 2)]
    num_targets = 2 * (tiny.CONTEXT_LENGTH - 1)
    engine.step(parts, num_targets, 1.0)
    state = engine.trainable_state(), engine.optimizer_state()
    expected = engine.step(parts, num_targets, 1.0).tolist()
    engine.close()
    other = make_engine(3)
    other.load(*state, num_steps=1)
    assert other.step(parts, num_targets, 1.0).tolist() == pytest.approx(expected, rel=1e-3)
    other.close()


def test_an_optimizer_in_the_hosts_memory_takes_the_same_steps() -> None:
    here = losses(make_engine(2, precision="fp32"), 4)
    assert losses(make_engine(2, precision="fp32", offload_optimizer=True), 4) == pytest.approx(here, rel=1e-3)


def test_cached_states_of_the_prefix_give_the_losses_of_recomputed_ones() -> None:
    the_stage, tokens_BT = stage(lora=None), tiny.tokens(4).to(worker_device())
    found = []
    for cached in (False, True):
        engine = make_engine(1, the_stage, micro_batch_size=4)
        batch: dict[str, Any] = {"labels": tokens_BT, "input_ids": tokens_BT}
        if cached:
            with torch.no_grad():
                states_BTD = engine.model.forward_prefix(tokens_BT, the_stage.num_frozen)
            batch = {"labels": tokens_BT, "prefix_hidden_states": states_BTD, "first_block": the_stage.num_frozen}
        found.append([engine.step([batch], 4 * (tiny.CONTEXT_LENGTH - 1), 1.0)[0].item() for _ in range(3)])
        engine.close()
    assert found[0] == pytest.approx(found[1], rel=2e-3)


def show(figure: Figure) -> None:
    print(f"\n{card()}: {figure.work}, {figure.way}: {figure.seconds * 1e3:.1f} ms, {figure.tflops:.1f} TFLOP/s")


@pytest.mark.parametrize(("hidden_size", "vocab_size"), HEADS)
def test_every_way_to_a_heads_loss_has_the_same_loss(hidden_size: int, vocab_size: int) -> None:
    sizes = (16, 300, 64, (16, 64)) if IS_DRY else (hidden_size, vocab_size, HEAD_ROWS, CHUNKS)
    figures = list(head_figures(*sizes[:2], num_rows=sizes[2], chunks=sizes[3]))
    for figure in figures:
        show(figure)
        assert figure.loss == pytest.approx(figures[0].loss, rel=2e-3) and figure.seconds > 0


@pytest.mark.parametrize("shape", STEPS, ids=lambda shape: f"D={shape.hidden_size}")
def test_every_way_of_a_step_has_the_same_loss_and_the_memory_that_was_forecast(shape: Any) -> None:
    figures = list(step_figures(small(shape), ("plain", "checkpointed")) if IS_DRY else step_figures(shape))
    for figure in figures:
        show(figure)
        assert figure.loss == pytest.approx(figures[0].loss, rel=5e-3) and figure.forecast_bytes
        if not IS_DRY:  # of a CPU, the peak is that of the whole process
            assert figure.peak_bytes == pytest.approx(figure.forecast_bytes, rel=0.3), figure


@pytest.mark.parametrize("vocab_size", [65_536, 131_072])
def test_tokens_are_chosen_as_on_the_cpu(vocab_size: int) -> None:
    size = 500 if IS_DRY else vocab_size
    scores_CV = 3 * torch.randn(32, size, generator=torch.Generator().manual_seed(0))
    ways: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.02}, {"temperature": 0.0}]
    choices = [Choice(Sampling(seed=row, **ways[row % len(ways)]), row) for row in range(32)]
    assert choose(scores_CV.to(worker_device()), choices) == choose(scores_CV, choices)
    places = [(row, 3) for row in range(4)]
    there = add_gumbel_noise(scores_CV[:4].to(worker_device()), places).cpu()
    assert torch.allclose(there, add_gumbel_noise(scores_CV[:4], places), atol=1e-4)


@pytest.mark.parametrize("vocab_size", [65_536, 131_072])
def test_thirty_two_requests_are_served_to_their_end(vocab_size: int) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(vocab_size=300), [tiny.TEXT * 9])
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(0)
    model = GrowtxForCausalLM(GrowtxConfig(**shape, vocab_size=400 if IS_DRY else vocab_size, eos_token_id=None)).eval()
    engines = Engines({None: model.to(worker_device())}, tokenizer, max_batch_size=32, kv_cache_gib=0.2)
    requests = [Generation(tuple(range(4, 20 + row)), 16, Sampling(seed=row, top_p=0.9)) for row in range(32)]

    async def text_of(request: Generation) -> list[int]:
        return [token.id async for tokens in engines.generate(request) for token in tokens]

    async def all_texts() -> list[list[int]]:
        return list(await asyncio.gather(*map(text_of, requests)))

    try:
        texts = asyncio.run(all_texts())
    finally:
        engines.stop()
    assert [len(text) for text in texts] == [16] * 32
