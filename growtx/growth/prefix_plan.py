"""Whether to recompute the frozen prefix in every step, or to keep its activations: counted in FLOPs and bytes.

Recomputing costs a forward pass of the prefix for every window of every step and trial; the cache costs one for
every window it holds, and T D numbers on disk for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import block_forward_flops

WORTHWHILE = 0.8  # the cache must save at least a fifth of the prefix's FLOPs to pay for writing and reading it


@dataclass(frozen=True)
class PrefixPlan:
    """What each way costs for all trials together, and the one to take."""

    choice: Literal["recompute", "cache"]
    reason: str
    recompute_flops: float
    cache_flops: float
    cache_bytes: int


def plan_prefix(
    config: GrowtxConfig,
    *,
    num_frozen: int,
    num_samples: int,
    num_windows_to_cache: int,
    num_windows_missing: int,
    bytes_per_number: int,
    bytes_available: int,
    num_trials: int = 1,
) -> PrefixPlan:
    """Compare both ways for a stage.

    Args:
        num_frozen: blocks of the prefix.
        num_samples: windows that the stage trains on, repetitions counted.
        num_windows_to_cache: windows whose activations the cache must hold.
        num_windows_missing: those of them that are not cached yet.
        bytes_available: what the cache may take at most.
        num_trials: runs that will use the same cache.
    """
    length = config.max_position_embeddings
    per_window = block_forward_flops(config, length).total * num_frozen * length
    recompute = per_window * num_samples * num_trials
    cache = per_window * num_windows_missing
    size = num_windows_to_cache * length * config.hidden_size * bytes_per_number
    choice: Literal["recompute", "cache"] = "recompute"
    if num_frozen == 0:
        reason = "there is no frozen prefix"
    elif size > bytes_available:
        reason = f"the cache would take {size:,} bytes, {bytes_available:,} are allowed"
    elif cache > WORTHWHILE * recompute:
        reason = "windows are seen too rarely for the cache to pay"
    else:
        choice, reason = "cache", f"the cache saves {1 - cache / recompute:.0%} of the prefix's FLOPs"
    return PrefixPlan(choice, reason, recompute, cache, size)
