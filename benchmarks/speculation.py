"""How much sooner a grown model writes when one of its lower depths drafts, beside what acceptance and costs allow.

Plain decoding is the faster of two: transformers' cached forward passes, and the same loop without drafts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from growtx.exceptions import ConfigError
from growtx.growth.results import find_result, load_model
from growtx.models import GrowtxForCausalLM
from growtx.sampling import Sampling, continue_text
from growtx.serving.speculation import Drafted, Speculation, load_speculation

DRAFTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class SpeculationRow:
    """A draft's depth and length, over all texts; ratios are medians over the rounds.

    Attributes:
        acceptance: share of the drafts that were right.
        ratio: tokens per second relative to plain decoding in the same round.
        ratio_of_loop: relative to the same loop without drafts, as the endpoint computes one text: no product has fewer
            than four rows there, which costs a lone text and makes drafts cheap.
        bound: of the ratio, for these tokens a pass, if time were proportional to the weights that are multiplied.
        needed: tokens a pass at which the bound would be 1.4.
    """

    depth: int
    num_drafts: int
    acceptance: float
    tokens_per_pass: float
    ratio: float
    ratio_of_loop: float
    bound: float
    needed: float


def measure_speculation(
    run: str, *, num_texts: int = 8, num_tokens: int = 64, num_rounds: int = 3, temperature: float = 0.7
) -> list[SpeculationRow]:
    """Rows for every lower depth of a run and several numbers of drafts; its own texts from nothing, one by one.

    Raises:
        GrowtxError: there is no run, or it has one depth alone.
    """
    torch.set_num_threads(1)
    model, tokenizer = load_model(run, None)
    if not isinstance(model, GrowtxForCausalLM):
        raise ConfigError(f"{run} is no single grown model", "Name a run of one")
    whole = model.config.num_hidden_layers
    depths = [depth for depth in find_result(run).depths if depth < whole]
    if not depths:
        raise ConfigError(f"{run} has no depth below {whole} that could draft", "Name a run of several stages")
    start = [int(tokenizer.eos_token_id)]
    samplings = [Sampling(seed=seed, temperature=temperature) for seed in range(num_texts)]
    ways: dict[tuple[int, int], Speculation] = {(depths[0], 0): load_speculation(run, None, depths[0], 0)[0]}
    ways |= {(depth, n): load_speculation(run, None, depth, n)[0] for depth in depths for n in DRAFTS}
    texts: dict[tuple[int, int], list[Drafted]] = {}
    ratios: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for _ in range(num_rounds):
        begin = time.perf_counter()
        for sampling in samplings:
            continue_text(model, start, num_tokens, sampling)
        plain = time.perf_counter() - begin
        loop = plain
        for key, speculation in ways.items():
            begin = time.perf_counter()
            texts[key] = [speculation.continue_text(start, num_tokens, sampling) for sampling in samplings]
            seconds = time.perf_counter() - begin
            if not key[1]:
                loop, plain = seconds, min(plain, seconds)
            ratios.setdefault(key, []).append((plain / seconds, loop / seconds))
    return [_row(model, key, texts[key], ratios[key]) for key in ways if key[1]]


def _row(
    model: GrowtxForCausalLM, key: tuple[int, int], texts: list[Drafted], ratios: list[tuple[float, float]]
) -> SpeculationRow:
    depth, num_drafts = key
    lower, upper = (_num_weights(*blocks) for blocks in (model.model.layers[:depth], model.model.layers[depth:]))
    head = _num_weights(model.lm_head)
    passes = sum(drafted.num_passes for drafted in texts)
    made = sum(drafted.num_drafts for drafted in texts)
    per_pass = sum(len(drafted.tokens) - 1 for drafted in texts) / passes
    # A pass's several positions cost the upper blocks what one does: their weights are read once.
    cost = ((num_drafts + 1) * lower + num_drafts * head + upper + head) / (lower + upper + head)
    right = sum(sum(drafted.was_drafted) for drafted in texts)
    ratio, ratio_of_loop = (median(found) for found in zip(*ratios, strict=True))
    return SpeculationRow(depth, num_drafts, right / made, per_pass, ratio, ratio_of_loop, per_pass / cost, 1.4 * cost)


def _num_weights(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.dim() > 1)
