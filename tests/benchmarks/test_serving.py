"""What measurements of serving are reduced to: quantiles over all rounds, slopes of what processes cost."""

from __future__ import annotations

import pytest

from benchmarks.serving import Timings, summarise
from benchmarks.soak import Cost, Soak


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
