"""Muon: matrices of blocks take steps of it under every ZeRO stage, on any number of ranks, and after a resume."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.train.engine import TrainEngine
from growtx.train.memory import memory_metrics
from growtx.train.muon import MOMENTUM, UPDATE_LENGTH, MatrixLayout, orthogonalized
from growtx.train.settings import TrainingConfig
from tests import tiny
from tests.train.engines import BATCH, MICRO_BATCH, Checkpoint, checkpoint, make_engine, muon_stage, run, two_ranks_muon

pytestmark = pytest.mark.usefixtures("process_group")
EXACT = 1e-5
Result = tuple[list[float], list[Checkpoint]]


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_the_singular_values_of_an_update_are_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalized(matrix * 1e-6)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.3
    assert (found - left @ right).norm() / found.norm() < 0.35
    assert torch.equal(orthogonalized(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize("is_each_divided", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_matrices_come_back_from_the_shards_of_all_ranks(is_each_divided: bool, num_ranks: int) -> None:
    layout = MatrixLayout(((3, 5), (7, 1), (2, 4)), is_each_divided)
    matrices = [torch.randn(shape) for shape in layout.shapes]
    size = sum(-(-matrix.numel() // num_ranks) for matrix in matrices) if is_each_divided else -(-30 // num_ranks) + 1
    shards = [layout.shard(matrices, rank=rank, num_ranks=num_ranks, size=size) for rank in range(num_ranks)]
    assert {shard.numel() for shard in shards} == {size}
    found = layout.whole(torch.stack(shards))
    assert all(torch.equal(one, other) for one, other in zip(found, matrices, strict=True))


def trained(zero_stage: int, optimizer: str = "muon") -> Result:
    """Losses of six steps, and the states after each of them."""
    engine = make_engine(zero_stage, muon_stage(optimizer))
    losses, states = [], []
    for step in range(6):
        losses += run(engine, step, step + 1)
        states.append(checkpoint(engine))
    engine.close()
    return losses, states


@pytest.fixture(scope="module")
def results(process_group: None) -> dict[int, Result]:
    return {zero_stage: trained(zero_stage) for zero_stage in (1, 2, 3)}


def beginning() -> dict[str, torch.Tensor]:
    engine = make_engine(1, muon_stage())
    state = engine.trainable_state()
    engine.close()
    return state


def is_matrix(name: str) -> bool:
    return ".layers." in name and name.endswith("proj.weight")


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_matrices_of_blocks_take_muons_step_and_all_else_adamws(zero_stage: int, results: dict[int, Result]) -> None:
    before = beginning()
    (after, moments), (later, moments_later), *_ = results[zero_stage][1]
    adamw, _ = trained(1, "adamw")[1][0]
    matrices = [name for name in before if is_matrix(name)]
    assert len(matrices) == 6 and moments["exp_avg"].keys() == before.keys()
    assert moments["exp_avg_sq"].keys() == before.keys() - set(matrices)
    rate, decay = 1e-2, 0.1
    for name in matrices:
        momentum = moments_later["exp_avg"][name]
        gradient = (momentum - MOMENTUM * moments["exp_avg"][name]) / (1 - MOMENTUM)
        update = orthogonalized(gradient.lerp(momentum, MOMENTUM)) * UPDATE_LENGTH * max(momentum.shape) ** 0.5
        torch.testing.assert_close(later[name], after[name] * (1 - rate * decay) - rate * update, atol=1e-4, rtol=1e-3)
        assert (after[name] - adamw[name]).abs().max() > 1e-3, f"{name} stepped as AdamW steps"
    for name in before.keys() - set(matrices):
        torch.testing.assert_close(after[name], adamw[name], atol=EXACT, rtol=0)


def test_all_zero_stages_take_the_same_steps_of_muon(results: dict[int, Result]) -> None:
    losses = {zero_stage: torch.tensor(losses) for zero_stage, (losses, _) in results.items()}
    for other in (2, 3):
        torch.testing.assert_close(losses[other], losses[1], atol=EXACT, rtol=0)
    assert losses[1][5] < losses[1][0]


@pytest.mark.parametrize(("source", "target"), [(1, 1), (1, 2), (2, 3), (3, 1), (3, 3)])
def test_muon_goes_on_from_a_saved_state_under_any_zero_stage(
    source: int, target: int, results: dict[int, Result]
) -> None:
    losses, state = results[source][0], results[source][1][2]
    engine = make_engine(target, muon_stage())
    engine.load(*state, num_steps=3)
    found = run(engine, 3, 6)
    engine.load(state[0], {key: {n: torch.zeros_like(t) for n, t in m.items()} for key, m in state[1].items()}, 3)
    without_momentum = run(engine, 3, 6)
    engine.close()
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses[3:]), atol=EXACT, rtol=0)
    assert abs(without_momentum[-1] - losses[-1]) > 1e-3, "its momentum matters"


def test_every_tensor_that_muon_steps_is_known_to_have_had_a_gradient() -> None:
    engine: TrainEngine = make_engine(2, muon_stage())
    assert engine.tensors_with_gradients() == set()
    run(engine, 0, 2)
    assert engine.tensors_with_gradients() == {name for name, _ in engine.trainable()}
    engine.close()


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_muons_optimizer_is_as_large_as_forecast(zero_stage: int) -> None:
    engine = make_engine(zero_stage, muon_stage())
    run(engine, 0, 1)
    held = engine.held
    engine.close()
    assert held is not None
    settings = TrainingConfig(zero_stage=zero_stage, global_batch_size=BATCH, micro_batch_size=MICRO_BATCH)  # type: ignore[arg-type]
    found = memory_metrics(held, tiny.config(3), muon_stage(), settings, num_workers=1)
    plain = memory_metrics(held, tiny.config(3), muon_stage("adamw"), settings, num_workers=1)
    for kind, size in found["held_bytes"].items():
        assert found["forecast_bytes"][kind] == pytest.approx(size, rel=0.02), kind
    assert found["forecast_bytes"]["optimizer"] < plain["forecast_bytes"]["optimizer"]


def test_two_ranks_take_the_steps_of_one_with_muon(tmp_path: Path, results: dict[int, Result]) -> None:
    multiprocessing.set_forkserver_preload(["tests.train.engines"])
    torch.save(results[1][1][2], tmp_path / "one-rank.pt")
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.start_processes(two_ranks_muon, arguments, nprocs=2, start_method="forkserver")
    found: dict[int, Any] = torch.load(tmp_path / "two-ranks.pt")
    expected = torch.tensor(results[1][0])
    for zero_stage, (losses, continued) in found.items():
        torch.testing.assert_close(torch.tensor(losses), expected, atol=EXACT, rtol=0, msg=f"ZeRO {zero_stage}")
        torch.testing.assert_close(torch.tensor(continued), expected[3:], atol=EXACT, rtol=0, msg=f"ZeRO {zero_stage}")
