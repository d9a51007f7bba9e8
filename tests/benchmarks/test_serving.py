"""What measurements of serving are reduced to: quantiles over all rounds, slopes of what processes cost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks import serving
from benchmarks.choosing import WAYS, measure_choosing, of_transformers
from benchmarks.serving import (
    ENGINE,
    Timings,
    Workload,
    measure_depths,
    measure_serving,
    measure_trunk,
    padded_batch,
    random_members,
    random_stages,
    ratio_to_best,
    summarise,
)
from benchmarks.soak import Cost, Soak
from benchmarks.speculation import DRAFTS, measure_speculation
from growtx.exceptions import ConfigError
from growtx.models.ensemble import from_members
from growtx.sampling import Choice, Sampling, choose
from growtx.serving.backbones import stacks_of
from growtx.serving.engine import Engines
from growtx.serving.requests import Generation
from tests import tiny


def test_quantiles_are_over_the_texts_of_all_rounds_and_throughput_is_that_of_the_middle_one() -> None:
    slow = Timings([[1.0, 2.0, 4.0]], seconds=4.0)
    fast = Timings([[0.1, 0.2, 0.3], [0.2, 0.4]], seconds=0.5)
    middle = Timings([[0.3, 0.5]], seconds=1.0)
    row = summarise([slow, fast, middle], "ensemble", 8, bound=100.0)
    assert (row.system, row.num_clients, row.bound_tokens_per_second) == ("ensemble", 8, 100.0)
    assert row.tokens_per_second == 2.0  # of 0.75, 10 and 2
    assert row.first_token_p50_seconds == pytest.approx(0.25)  # of 0.1, 0.2, 0.3, 1
    assert row.inter_token_p50_seconds == pytest.approx(0.2)  # of 0.1, 0.1, 0.2, 0.2, 1, 2
    assert (row.first_token_p99_seconds, row.inter_token_p99_seconds) == (1.0, 2.0)


def test_the_ratio_is_to_the_best_alternative_of_the_same_round_model_and_clients() -> None:
    def rounds(*speeds: float) -> list[Timings]:
        return [Timings([[1.0] * int(speed)], seconds=1.0) for speed in speeds]

    measured = {
        ("m", ENGINE, 8): rounds(20, 40, 30),
        ("m", "slow", 8): rounds(1, 2, 20),
        ("m", "fast", 8): rounds(10, 10, 10),
        ("m", "fast", 1): rounds(1000, 1000, 1000),
        ("other", "fast", 8): rounds(1000, 1000, 1000),
    }
    assert ratio_to_best(measured, "m", 8) == 2.0  # of 2, 4, 1.5


def test_every_way_of_serving_is_measured_and_gives_the_tokens_of_the_others(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CLIENTS", (1, 3))
    small = {"hidden_size": 32, "num_blocks": 1, "num_heads": 2, "vocab_size": 300, "context_length": 128}
    members = random_members(tokenizer, **small)
    workload = Workload(num_new_tokens=6, num_rounds=1, num_naive_texts=2)
    rows = {(row.system, row.num_clients): row for row in measure_serving(members, tokenizer, workload)}
    ways = ["ensemble, this engine", "ensemble, naive loop", "ensemble, padded batch"]
    ways += ["one member, this engine", "one member, padded batch", "one member, continuous batching"]
    assert sorted(rows) == sorted((way, clients) for way in ways for clients in (1, 3))
    assert all((row.ratio_to_best is not None) == ("engine" in row.system) for row in rows.values())
    assert all(row.tokens_per_second > 0 and row.first_token_p50_seconds > 0 for row in rows.values())
    attention = {member.config._attn_implementation for member in members.values()}
    assert attention == {"sdpa"}, "an engine changes only its own copies"

    requests = workload.requests(3, 300)
    together = padded_batch(list(members.values()), requests)[1]
    assert together == [padded_batch(list(members.values()), [request])[1][0] for request in requests]
    engine = Engines({None: from_members(members).eval()}, tokenizer)

    async def text_of(request: Generation) -> list[int]:
        return [token.id async for tokens in engine.generate(request) for token in tokens]

    async def all_texts() -> list[list[int]]:
        return list(await asyncio.gather(*map(text_of, requests)))

    assert asyncio.run(all_texts()) == together
    engine.stop()


def test_a_trunk_is_measured_beside_its_bound(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CLIENTS", (1, 2))
    small = {"hidden_size": 32, "num_blocks": 2, "num_heads": 2, "vocab_size": 300, "context_length": 128}
    rows = measure_trunk(tokenizer, Workload(num_new_tokens=4, num_rounds=1), num_members=(2, 3), **small)
    block = 12 * 32 * 32
    share = block / (2 * block + 32 * 300)
    assert [(row.num_members, row.num_clients) for row in rows] == [(2, 2), (3, 2)]
    assert [row.share for row in rows] == pytest.approx([share, share])
    assert [row.bound for row in rows] == pytest.approx([1 / (2 - share), 1 / (3 - 2 * share)])
    assert all(row.ratio > 0 and row.tokens_per_second > 0 for row in rows)
    first, second = random_members(tokenizer, num_trunk_blocks=1, **small).values()
    assert first.model.layers[0] is second.model.layers[0] and first.model.layers[1] is not second.model.layers[1]


def test_all_depths_are_measured_together_and_apart(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CLIENTS", (1, 2, 4))
    small = {"hidden_size": 32, "num_heads": 2, "vocab_size": 300, "context_length": 160}
    rows = measure_depths(tokenizer, Workload(num_new_tokens=4, num_rounds=1), depths=(1, 3), **small)
    assert [(row.depths, row.num_clients) for row in rows] == [((1, 3), 2), ((1, 3), 4)]
    assert all(row.ratio > 0 and row.tokens_per_second > 0 for row in rows)
    stages = random_stages(tokenizer, (1, 3), **small)
    assert len(stacks_of(stages)) == 1 and stages[1].lm_head.weight is not stages[3].lm_head.weight


def test_speculation_is_measured_for_every_lower_depth(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny.write_run(run, tiny.build_tokenizer(), {"grow": {"blocks": 3}, "train": {"steps": 1}})
    rows = measure_speculation(str(run), num_texts=1, num_tokens=12, num_rounds=1)
    assert [(row.depth, row.num_drafts) for row in rows] == [(depth, n) for depth in (1, 2) for n in DRAFTS]
    assert all(0 <= row.acceptance <= 1 <= row.tokens_per_pass <= row.num_drafts + 1 and row.ratio > 0 for row in rows)
    first = rows[0]  # one draft by one of three blocks: its block twice, both heads
    block, head = 12 * tiny.HIDDEN_SIZE**2, tiny.HIDDEN_SIZE * tiny.VOCAB_SIZE
    cost = (2 * block + head + 2 * block + head) / (3 * block + head)
    assert (first.bound, first.needed) == pytest.approx((first.tokens_per_pass / cost, 1.4 * cost))
    with pytest.raises(ConfigError, match="no depth below 1"):
        tiny.write_run(tmp_path / "flat", tiny.build_tokenizer(), {"grow": {"blocks": 1}, "train": {"steps": 1}})
        measure_speculation(str(tmp_path / "flat"))


def test_the_99th_percentile_leaves_out_one_in_a_hundred() -> None:
    texts = Timings([[float(first), first + 1.0] for first in range(200)], seconds=1.0)
    assert summarise([texts], "x", 1, 1.0).first_token_p99_seconds == 197.0


def test_a_cost_that_grows_has_a_slope_and_one_that_only_jitters_has_none() -> None:
    mebibyte = 2**20
    costs = [Cost(10.0 * i, (100 + i % 2) * mebibyte, (50 + i) * mebibyte, 7, 9) for i in range(40)]
    soak = Soak(costs={"engine": costs})
    first, last, slope = soak.change("engine", "private_bytes")
    assert (first, last) == (54.5 * mebibyte, 84.5 * mebibyte)
    assert slope == pytest.approx(6 * mebibyte)  # a mebibyte in ten seconds
    assert abs(soak.change("engine", "resident_bytes")[2]) < 0.02 * mebibyte
    assert soak.change("engine", "num_threads") == (7, 7, 0)


def test_both_ways_of_choosing_draw_from_the_same_distribution() -> None:
    """A benchmark of two things that do not do the same would be worth nothing."""
    scores_CV = torch.tensor([2.0, 1.0, 0.5, -1.0, 0.0]).expand(20_000, -1)
    torch.manual_seed(0)
    for settings in WAYS.values():
        choices = [Choice(Sampling(seed=seed, **settings), 0) for seed in range(len(scores_CV))]
        ours, theirs = choose(scores_CV, choices), of_transformers(settings)(scores_CV)
        shares = [[tokens.count(token) / len(scores_CV) for token in range(5)] for tokens in (ours, theirs)]
        assert shares[0] == pytest.approx(shares[1], abs=0.025)  # five standard errors of a difference
    assert {row.way for row in measure_choosing(500, num_texts=3, rounds=1)} == set(WAYS)
