"""What a rule costs where tokens are generated one by one: tokens a second, beside the best member alone.

One text at a time, as `growtx generate` does it, each next token taken from held-out text. The gate runs members late
there; the endpoint, which computes many texts in one step, runs all members for every rule.

Shapes: W windows, T positions, N members.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from growtx.config import ConfigModel
from growtx.models.causal_lm import GrowtxForCausalLM
from growtx.models.ensemble import CombinationRule, GrowtxEnsembleForCausalLM, LateBranches, member_of

NUM_WINDOWS = 3
NUM_STEPS = 64  # of each window; what is before them is read at once and not timed


class Speed(ConfigModel):
    """How fast one text is continued.

    Attributes:
        share_opened: tokens at which more than the best member ran; 1 where all always do, 0 for a member alone.
        branches_per_token: branches that read a token, sooner or later; those that catch up included.
    """

    tokens_per_second: float
    share_opened: float
    branches_per_token: float


@torch.no_grad()
def decode_speeds(
    ensemble: GrowtxEnsembleForCausalLM,
    best_member: str,
    rules: Mapping[str, CombinationRule],
    windows_WT: torch.Tensor,
) -> dict[str, Speed]:
    """Decode the same tokens by every rule and by the best member, window by window, so that all meet the same load."""
    runs: dict[str, list[tuple[int, float, LateBranches | None]]] = {name: [] for name in (best_member, *rules)}
    alone, own = member_of(ensemble, best_member), ensemble.rule
    for window_T in windows_WT[:NUM_WINDOWS]:
        runs[best_member].append(_decode(alone, window_T))
        for name, rule in rules.items():
            ensemble.set_rule(rule)  # the cache needs room for what the rule remembers
            runs[name].append(_decode(ensemble, window_T))
    ensemble.set_rule(own)
    num_members = ensemble.config.num_members
    return {name: _speed(found, 1 if name == best_member else num_members) for name, found in runs.items()}


def _decode(
    model: GrowtxEnsembleForCausalLM | GrowtxForCausalLM, window_T: torch.Tensor
) -> tuple[int, float, LateBranches | None]:
    """Steps, seconds, and the cache of a gate."""
    first = max(1, len(window_T) - NUM_STEPS)
    cache = model(window_T[None, :first], use_cache=True, logits_to_keep=1).past_key_values
    start = time.perf_counter()
    for token in window_T[first:]:
        model(token[None, None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    seconds = time.perf_counter() - start
    return len(window_T) - first, seconds, cache if isinstance(cache, LateBranches) else None


def _speed(runs: list[tuple[int, float, LateBranches | None]], num_members: int) -> Speed:
    late = [cache for _, _, cache in runs if cache is not None]
    num_tokens = sum(cache.num_tokens for cache in late)
    num_read = sum(cache.get_seq_length() for cache in late)
    return Speed(
        tokens_per_second=sum(steps for steps, _, _ in runs) / max(1e-9, sum(seconds for _, seconds, _ in runs)),
        share_opened=sum(cache.num_opened for cache in late) / num_tokens if late else float(num_members > 1),
        branches_per_token=sum(sum(cache.num_read) for cache in late) / num_read if late else float(num_members),
    )
