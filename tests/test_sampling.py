"""The distribution of chosen tokens against an implementation that shares nothing with ours: numpy, sorting, shares."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, gumbel_r, kstest

from growtx.sampling import (
    Choice,
    Sampling,
    TextSoFar,
    add_gumbel_noise,
    adjust,
    attribute,
    choose,
    continue_text,
    log_probabilities,
    seed_of_choice,
)

SCORES = [0.2, 3.0, 2.4, -1.0, 1.7, 2.9, 0.0]
STEEP = [6.0, 5.0, 1.0, 0.5, 0.0, -2.0]
RECORDED_NOISE = [0.5972241163, 1.6364207268, 4.3337402344, 0.2751030922]
WIDE = np.random.default_rng(0).normal(0, 1.5, 50).tolist()


def _distribution(scores: list[float], settings: Sampling) -> np.ndarray:
    """Probabilities [V] by the definitions: temperature, then top_k, then the nucleus, then min_p."""
    powers = np.exp(np.array(scores) / settings.temperature)
    left = powers / powers.sum()
    order = np.argsort(-left)
    if settings.top_k:
        left = _renormalised(left, order[: settings.top_k])
    if settings.top_p < 1:
        size = next(n for n in range(1, len(order) + 1) if left[order[:n]].sum() >= settings.top_p)
        left = _renormalised(left, order[:size])
    return _renormalised(left, np.flatnonzero(left >= settings.min_p * left.max()))


def _renormalised(probabilities: np.ndarray, kept: np.ndarray) -> np.ndarray:
    only = np.zeros_like(probabilities)
    only[kept] = probabilities[kept]
    return np.asarray(only / only.sum())


def _surprise(counts: np.ndarray, expected: np.ndarray) -> float:
    """Probability of counts at least so far from the expected ones (chi-square; rare tokens together)."""
    frequent = expected >= 5
    seen, wanted = list(counts[frequent]), list(expected[frequent])
    if (rest := expected[~frequent].sum()) >= 5:
        seen.append(counts[~frequent].sum())
        wanted.append(rest)
    statistic = sum((a - b) ** 2 / b for a, b in zip(seen, wanted, strict=True))
    return float(chi2.sf(statistic, max(1, len(wanted) - 1)))


def _choose(scores: Sequence[float], *choices: Choice, eos_ids: Sequence[int] = ()) -> list[int]:
    """A token for each choice after the same scores."""
    return choose(torch.tensor(scores).expand(len(choices), -1), choices, eos_ids)


def _noise(num_tokens: int, seed: int, position: int) -> torch.Tensor:
    return add_gumbel_noise(torch.zeros(1, num_tokens), [(seed, position)])[0]


@pytest.mark.parametrize("over", ["seeds", "positions"])
@pytest.mark.parametrize(
    ("scores", "settings"),
    [
        (SCORES, {}),
        (SCORES, {"temperature": 0.3}),
        (SCORES, {"temperature": 1.7}),
        (WIDE, {"temperature": 0.6}),
        (SCORES, {"top_p": 0.9}),
        (SCORES, {"top_p": 0.5}),
        (WIDE, {"top_p": 0.8, "temperature": 1.3}),
        (STEEP, {"top_p": 0.74}),  # the first token has 0.72: the second is needed, the third is not
        (STEEP, {"top_p": 1e-6}),
        (SCORES, {"top_k": 1}),
        (SCORES, {"top_k": 3}),
        (WIDE, {"top_k": 12, "temperature": 1.7}),
        (WIDE, {"top_k": 1000}),
        (SCORES, {"min_p": 0.3}),
        (WIDE, {"min_p": 0.2, "temperature": 1.2}),
        (WIDE, {"top_k": 20, "top_p": 0.9, "min_p": 0.1, "temperature": 0.8}),
    ],
)
def test_tokens_come_as_often_as_they_should(scores: list[float], settings: dict[str, Any], over: str) -> None:
    num_draws = 4000
    expected = _distribution(scores, Sampling(**settings))
    places = [(draw, 5) if over == "seeds" else (11, draw) for draw in range(num_draws)]
    chosen = _choose(scores, *(Choice(Sampling(seed=seed, **settings), position) for seed, position in places))
    counts = np.bincount(chosen, minlength=len(scores))
    assert counts[expected == 0].sum() == 0
    assert _surprise(counts, expected * num_draws) > 1e-5


def test_noise_is_of_each_seed_and_each_position_alone() -> None:
    for next_seed, next_position in ((0, 1), (1, 0)):
        first = _choose([0.0] * 4, *(Choice(Sampling(seed=seed), 7) for seed in range(4000)))
        nexts = (Choice(Sampling(seed=seed + next_seed), 7 + next_position) for seed in range(4000))
        second = _choose([0.0] * 4, *nexts)
        counts = np.bincount(4 * np.array(first) + second, minlength=16)
        assert _surprise(counts, np.full(16, 4000 / 16)) > 1e-5
    assert not torch.equal(_noise(4, 5, 6), _noise(4, 6, 5))
    assert torch.equal(_noise(4, 5, 6), _noise(4, 5, 6))
    noise = _noise(200_000, 0, 0).double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_noise_of_neighbours_is_unrelated() -> None:
    """Tokens, positions, seeds and tokens far apart: correlations of 131,072 pairs, whose standard error is 0.0028."""
    num_tokens = 2**17
    noise = _noise(num_tokens, 3, 4).double()
    others = [_noise(num_tokens, 3, 5), _noise(num_tokens, 4, 4), *(noise.roll(n) for n in (1, 2, 16, 256, 65536))]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([noise, other.double()]))[0, 1])) < 0.014  # five standard errors
    assert len(noise.unique()) > 0.99 * num_tokens  # 24 bits of a float: a few coincide


def test_noise_follows_its_distribution_far_into_both_tails() -> None:
    noise = add_gumbel_noise(torch.zeros(64, 2**16), [(seed, 0) for seed in range(64)]).flatten()
    assert float(kstest(noise[: 2**20].numpy(), "gumbel_r").pvalue) > 1e-5
    for quantile in (1e-6, 1e-4, 1 - 1e-4, 1 - 1e-6):
        expected = (quantile if quantile < 0.5 else 1 - quantile) * len(noise)
        beyond = noise < gumbel_r.ppf(quantile) if quantile < 0.5 else noise > gumbel_r.ppf(quantile)
        assert int(beyond.sum()) == pytest.approx(expected, abs=5 * expected**0.5)
    assert bool(noise.isfinite().all())


def _noise_by_numpy(num_tokens: int, seed: int, position: int) -> np.ndarray:
    """The definition again, in unsigned integers, and with logarithms in double precision."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    first, second = np.frombuffer(digest, "<u4")
    words = (np.arange(num_tokens, dtype=np.uint32) * np.uint32(0x9E3779B9)) ^ first
    words = ((words ^ (words >> np.uint32(16))) * np.uint32(0x21F0AAAD)) ^ second
    words = (words ^ (words >> np.uint32(15))) * np.uint32(0xD35A2D97)
    words = (words ^ (words >> np.uint32(15))) & np.uint32(2**31 - 1)
    uniform = (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    return np.asarray(-np.log(-np.log1p(-uniform.clip(max=1 - 2.0**-24).astype(np.float64))))


def test_noise_is_the_same_on_every_machine() -> None:
    """Integers wrap around alike everywhere, and only the last bits of a logarithm may differ."""
    assert _noise(4, 5, 6).tolist() == pytest.approx(RECORDED_NOISE, abs=1e-6)
    for seed, position in ((0, 0), (-(2**63), 2**40), (2**63 - 1, 1)):
        found = _noise(70_000, seed, position).numpy()
        assert found == pytest.approx(_noise_by_numpy(70_000, seed, position), abs=2e-6)


def test_no_row_depends_on_its_neighbours() -> None:
    """Any settings together, in any order and company, choose what each chooses alone: bit for bit the same noise."""
    generator = torch.Generator().manual_seed(0)
    scores_CV = torch.randn(24, 1003, generator=generator) * 2
    ways: list[dict[str, Any]] = [
        {}, {"temperature": 0.0}, {"top_p": 0.7}, {"top_k": 9}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.5},
        {"temperature": 2.5, "top_p": 0.95}, {"repetition_penalty": 1.4, "logit_bias": ((3, 2.0),)},
    ]  # fmt: skip
    choices = [Choice(Sampling(seed=row, **ways[row % len(ways)]), row, TextSoFar(PROMPT, TEXT)) for row in range(24)]
    alone = [choose(scores_CV[row : row + 1], [choices[row]], [6])[0] for row in range(24)]
    assert choose(scores_CV, choices, [6]) == alone
    assert choose(scores_CV.flip(0), choices[::-1], [6]) == alone[::-1]
    places = [(choice.sampling.seed, choice.position) for choice in choices]
    together_CV = add_gumbel_noise(scores_CV, places)
    for row in range(24):
        assert torch.equal(together_CV[row], add_gumbel_noise(scores_CV[row : row + 1], places[row : row + 1])[0])


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_a_nucleus_is_the_smallest_set_also_where_many_tokens_are_alike(top_p: float) -> None:
    """Where the noise would have it elsewhere, the choice is the noisiest token of the set, found by sorting."""
    for scores in (np.random.default_rng(1).normal(0, 0.1, 3000), np.random.default_rng(2).normal(0, 4, 3000)):
        scores_V = torch.tensor(scores, dtype=torch.float32)
        outside = torch.tensor(_distribution(scores_V.double().tolist(), Sampling(top_p=top_p)) == 0)
        noisy_CV = add_gumbel_noise(scores_V.expand(200, -1), [(seed, 2) for seed in range(200)])
        expected = noisy_CV.masked_fill(outside, float("-inf")).argmax(-1).tolist()
        found = _choose(scores_V.tolist(), *(Choice(Sampling(seed=seed, top_p=top_p), 2) for seed in range(200)))
        assert found == expected


def test_a_nucleus_of_equal_tokens_takes_the_smallest_ids() -> None:
    found = _choose([0.0] * 10, *(Choice(Sampling(seed=seed, top_p=0.25), 0) for seed in range(300)))
    assert set(found) == {0, 1, 2}


def test_choices_of_one_seed_share_nothing() -> None:
    assert seed_of_choice(5, 0) == 5
    seeds = [seed_of_choice(seed, choice) for seed in range(20) for choice in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= -(2**63)
    assert max(seeds) < 2**63


PROMPT, TEXT = frozenset({0, 2}), Counter({1: 3, 2: 1, 5: 2})


def _adjusted(scores: list[float], settings: Sampling) -> list[float]:
    """Scores by the definitions of the settings, token by token; token 6 ends the text."""
    adjusted = []
    for token, score in enumerate(scores):
        score += dict(settings.logit_bias).get(token, 0.0)  # noqa: PLW2901
        if token in PROMPT or token in TEXT:
            factor = settings.repetition_penalty
            score = score / factor if score > 0 else score * factor  # noqa: PLW2901
        if token in TEXT:
            score -= settings.frequency_penalty * TEXT[token] + settings.presence_penalty  # noqa: PLW2901
        adjusted.append(float("-inf") if token == 6 and TEXT.total() < settings.min_tokens else score)
    return adjusted


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.7},
        {"frequency_penalty": 0.4},
        {"frequency_penalty": -1.0},
        {"presence_penalty": 0.9},
        {"logit_bias": ((3, 4.5), (1, -100.0), (2, -3.0))},
        {"min_tokens": 5},
        {"min_tokens": 6},
        {"min_tokens": 7},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": -0.5, "logit_bias": ((0, -2.0),)},
    ],
)
def test_penalties_and_bias_are_those_that_are_published(settings: dict[str, Any]) -> None:
    scores_V, before = torch.tensor(SCORES), list(SCORES)
    neighbour = Choice(Sampling(), 0, TextSoFar(PROMPT, TEXT))  # stays as it is
    choices = [neighbour, Choice(Sampling(**settings), 0, TextSoFar(PROMPT, TEXT)), neighbour]
    before_V, found_V, after_V = adjust(scores_V.expand(3, -1), choices, [6])
    assert before_V.tolist() == after_V.tolist() == scores_V.tolist()
    assert found_V.tolist() == pytest.approx(_adjusted(SCORES, Sampling(**settings)), abs=1e-6)
    assert scores_V.tolist() == pytest.approx(before, abs=1e-6)  # untouched: log-probabilities are of them


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.8}, {"presence_penalty": 1.2, "frequency_penalty": 0.5}])
def test_penalised_tokens_come_as_often_as_they_should(settings: dict[str, Any]) -> None:
    expected = _distribution(_adjusted(SCORES, Sampling(**settings)), Sampling(top_p=0.95))
    text = TextSoFar(PROMPT, TEXT)
    choices = [Choice(Sampling(seed=seed, top_p=0.95, **settings), 5, text) for seed in range(4000)]
    counts = np.bincount(_choose(SCORES, *choices, eos_ids=[6]), minlength=len(SCORES))
    assert counts[expected == 0].sum() == 0
    assert _surprise(counts, expected * 4000) > 1e-5


def test_greedy_takes_the_most_probable_token_whatever_the_seed() -> None:
    assert _choose(SCORES, *(Choice(Sampling(seed=seed, temperature=0.0), 3) for seed in range(50))) == [1] * 50


@dataclass
class _Output:
    logits: torch.Tensor
    past_key_values: Any = None


class _Same:
    """A model whose scores are the same after every text; remembers what it was given."""

    def __init__(self, scores: list[float]) -> None:
        self._scores, self.given = scores, []  # type: ignore[var-annotated]

    def __call__(
        self, *, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool, logits_to_keep: int
    ) -> _Output:
        self.given.append(input_ids.tolist()[0])
        return _Output(torch.tensor([[self._scores] * input_ids.shape[1]]), "cache")


def test_a_text_is_continued_token_by_token_with_the_noise_of_its_positions() -> None:
    model = _Same(SCORES)
    found = continue_text(model, [4, 2, 1], 6, Sampling(seed=9))
    noises = [_noise(len(SCORES), 9, position) for position in range(3, 9)]
    assert found == [int((torch.tensor(SCORES) + noise).argmax()) for noise in noises]
    assert model.given == [[4, 2, 1], *([token] for token in found[:-1])]
    assert continue_text(_Same(SCORES), [4, 2, 1, *found[:3]], 3, Sampling(seed=9)) == found[3:]


def test_penalties_grow_with_the_text_and_spare_the_hidden_token() -> None:
    scores = [5.0, 4.4, 3.0]
    assert continue_text(_Same(scores), [2], 6, Sampling(temperature=0, frequency_penalty=0.5)) == [0, 0, 1, 0, 1, 0]
    penalised = Sampling(temperature=0, repetition_penalty=2.0)
    assert continue_text(_Same(scores), [0, 1], 1, penalised) == [2]
    assert continue_text(_Same(scores), [0, 1], 1, penalised, num_hidden=1) == [0]


def test_an_end_of_text_token_ends_a_text_unless_it_is_ignored_or_too_early() -> None:
    scores = [1.0, 5.0, 0.0]
    greedy = {"temperature": 0.0}
    assert continue_text(_Same(scores), [2], 5, Sampling(**greedy), eos_ids=[1]) == [1]
    assert continue_text(_Same(scores), [2], 5, Sampling(**greedy, ignore_eos=True), eos_ids=[1]) == [1] * 5
    assert continue_text(_Same(scores), [2], 5, Sampling(**greedy, min_tokens=2), eos_ids=[1]) == [0, 0, 1]
    assert continue_text(_Same(scores), [2], 2, Sampling(**greedy), eos_ids=[0]) == [1, 1]


def test_log_probabilities_are_those_of_the_scores() -> None:
    (other, none), (logprob, top) = log_probabilities(torch.tensor([SCORES[::-1], SCORES]), [2, 4], [0, 2])
    expected = np.log(_distribution(SCORES, Sampling()))
    assert (other, none) == (pytest.approx(expected[4], abs=1e-5), ())
    assert logprob == pytest.approx(expected[4], abs=1e-5)
    assert [token for token, _ in top] == [1, 5]
    assert [value for _, value in top] == pytest.approx([expected[1], expected[5]], abs=1e-5)


def test_shares_of_members_are_weight_times_probability() -> None:
    members = [torch.tensor([SCORES, SCORES]), torch.tensor([SCORES[::-1], SCORES[::-1]])]
    first, second = (_distribution(scores, Sampling())[1] for scores in (SCORES, SCORES[::-1]))
    whole = 0.3 * first + 0.7 * second
    shares, only = attribute(members, torch.tensor([[0.3, 0.7], [0.0, 2.0]]), [1, 1])
    assert shares == pytest.approx((0.3 * first / whole, 0.7 * second / whole), abs=1e-5)
    assert only == pytest.approx((0.0, 1.0))
