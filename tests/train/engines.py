"""Engines of one small stage on any number of ranks, and what two ranks find when they run them.

Shapes: B global batch, b a worker's share, T positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from growtx.exceptions import GrowtxError, StoreError
from growtx.growth.assembly import build_stage_model
from growtx.growth.freezing import prepare_for_stage
from growtx.growth.plan import Stage
from growtx.models.loss import IGNORE_INDEX
from growtx.train.distributed import any_rank, on_rank_zero, rank, sum_over_ranks, world_size
from growtx.train.engine import State, TrainEngine
from growtx.train.settings import TrainingConfig, num_micro_batches
from tests import tiny
from tests.train.conftest import set_up_rank

BATCH, MICRO_BATCH = 4, 2
Checkpoint = tuple[State, dict[str, State]]
TRAIN = {"steps": 6, "learning_rate": 1e-2, "head_learning_rate": 5e-3}


def stage(**last: Any) -> Stage:
    """The newest of three blocks trains with the head, and adapters on the blocks below."""
    change = {"add": 1, "lora": {"rank": 2}, **last}
    return tiny.stages(train=TRAIN, stages=[{"add": 2}, change])[1]


def muon_stage(optimizer: str = "muon") -> Stage:
    """The newest of three blocks trains with the head."""
    train = {**TRAIN, "optimizer": optimizer}
    return tiny.stages(train=train, stages=[{"add": 2}, {"add": 1}])[1]


def make_engine(zero_stage: int, the_stage: Stage | None = None, **settings: Any) -> TrainEngine:
    the_stage = the_stage or stage()
    (below,) = tiny.stages(stages=[{"add": 2}])
    parent = build_stage_model(tiny.config(2), below, None, tiny.substrate(), seed=0).state_dict()
    model = prepare_for_stage(
        build_stage_model(tiny.config(3), the_stage, parent, tiny.substrate(), seed=0), the_stage, seed=0
    )
    model.train()
    batch = {"global_batch_size": BATCH, "micro_batch_size": MICRO_BATCH}
    return TrainEngine(model, the_stage, TrainingConfig(zero_stage=zero_stage, **{**batch, **settings}))  # type: ignore[arg-type]


def run(
    engine: TrainEngine, first_step: int, last_step: int, micro_batch: int = MICRO_BATCH, batch: int = BATCH
) -> list[float]:
    """Mean loss over all ranks of each step; a batch that does not split is filled up as `Batches` does."""
    losses = []
    num_micro = num_micro_batches(batch, micro_batch, world_size())
    for step in range(first_step, last_step):
        share = num_micro * micro_batch
        tokens_BT = tiny.tokens(share * world_size(), seed=step)
        labels_BT = tokens_BT.clone()
        labels_BT[batch:] = IGNORE_INDEX
        mine = slice(rank() * share, (rank() + 1) * share)
        pairs = zip(torch.split(tokens_BT[mine], micro_batch), torch.split(labels_BT[mine], micro_batch), strict=True)
        parts = [{"input_ids": tokens, "labels": labels} for tokens, labels in pairs]
        num_targets = batch / (num_micro * world_size()) * (tiny.CONTEXT_LENGTH - 1)
        totals = engine.step(parts, num_targets, 1.0)
        nats, num_tokens = sum_over_ranks(totals).tolist()
        losses.append(nats / num_tokens)
    return losses


def checkpoint(engine: TrainEngine) -> Checkpoint:
    return engine.trainable_state(), engine.optimizer_state()


def two_ranks(this_rank: int, store: str, directory: str) -> None:
    """Train and continue on two ranks under every ZeRO stage; rank 0 writes down what came out."""
    dist = set_up_rank(this_rank, 2, store)
    of_one_rank: Checkpoint = torch.load(f"{directory}/one-rank.pt") if this_rank == 0 else ({}, {})
    found: dict[str, Any] = {"messages": _messages(this_rank), "uneven": uneven_losses()}
    for zero_stage in (1, 2, 3):
        engine = make_engine(zero_stage)
        before = engine.frozen_hash()
        losses = run(engine, 0, 3)
        state = checkpoint(engine)
        losses += run(engine, 3, 6)
        unmoved = engine.frozen_hash() == before
        engine.load(*of_one_rank, num_steps=3)
        found[f"zero-{zero_stage}"] = (losses, state, unmoved, run(engine, 3, 6), vars(engine.held))
        engine.close()
    if this_rank == 0:
        torch.save(found, Path(directory) / "two-ranks.pt")
    dist.destroy_process_group()


def uneven_losses() -> list[list[float]]:
    """Of three windows a step, under every ZeRO stage, in micro batches of two."""
    found = []
    for zero_stage in (1, 2, 3):
        engine = make_engine(zero_stage, global_batch_size=3)
        found.append(run(engine, 0, 4, batch=3))
        engine.close()
    return found


def two_ranks_muon(this_rank: int, store: str, directory: str) -> None:
    """Losses of six steps of Muon on two ranks, and of three from the state that one rank has saved."""
    dist = set_up_rank(this_rank, 2, store)
    of_one_rank: Checkpoint = torch.load(f"{directory}/one-rank.pt")
    found = {}
    for zero_stage in (1, 2, 3):
        engine = make_engine(zero_stage, muon_stage())
        losses = run(engine, 0, 6)
        engine.load(*of_one_rank, num_steps=3)
        found[zero_stage] = (losses, run(engine, 3, 6))
        engine.close()
    if this_rank == 0:
        torch.save(found, Path(directory) / "two-ranks.pt")
    dist.destroy_process_group()


def _messages(this_rank: int) -> dict[str, Any]:
    """What the ranks agree on."""

    def fail() -> None:
        raise StoreError(f"seen by rank {rank()}", "Restore it")

    try:
        on_rank_zero(fail)
    except GrowtxError as error:
        raised = str(error)
    assert on_rank_zero(lambda: this_rank) == 0, "every rank gets the result of rank 0"
    assert any_rank([this_rank == 1, False]) == [True, False]
    assert sum_over_ranks(torch.tensor([1.0, float(this_rank)])).tolist() == [2.0, 1.0]
    return {"raised": raised}
