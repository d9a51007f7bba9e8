"""The prefix cache of one stage: decide, fill what is missing together, hand it to the batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from growtx.exceptions import ConfigError, StoreError
from growtx.growth.assembly import assemble
from growtx.growth.flops import PrefixPlan, plan_prefix
from growtx.growth.plan import Stage
from growtx.store.blobs import BlobStore
from growtx.store.manifest import Manifest
from growtx.train import prefix_cache
from growtx.train.batches import Batches
from growtx.train.distributed import any_rank, on_all_ranks, on_rank_zero, rank, worker_device, world_size
from growtx.train.job import TrainJob
from growtx.train.kernels import use_bf16
from growtx.train.prefix_cache import PrefixCache, PrefixWork, fill_by_job
from growtx.train.progress import StopRequested
from growtx.train.settings import PrefixJobConfig

logger = logging.getLogger(__name__)


def use_prefix_cache(
    job: TrainJob,
    stage: Stage,
    parent: Manifest,
    batches: Batches,
    *,
    num_steps: int,
    micro_batch: int,
    is_stopping: Callable[[], bool] = lambda: False,
) -> PrefixPlan:
    """Let `batches` read the prefix's activations if the plan says so. Collective.

    Args:
        is_stopping: whether this rank has heard that the run shall stop; asked while the cache is filled.

    Raises:
        StopRequested: some rank has; the part of the cache that is filled stays.
        ConfigError: a cache is requested where the prefix does not stay the same.
        StoreError: a cache is requested and the disk is full; `auto` then recomputes, with a warning.
    """
    settings = job.training_of(stage)
    if stage.lora is not None or stage.train_substrate:
        if settings.prefix == "cache":
            raise ConfigError(
                f"training.prefix=cache: stage {stage.index} changes what its prefix computes (LoRA or substrate)",
                "Use training.prefix=auto",
            )
        return PrefixPlan("recompute", "the prefix changes in this stage", 0)
    dtype = torch.bfloat16 if use_bf16(settings) else torch.float32
    config = job.model_at(stage.num_blocks)
    allowed = int(settings.prefix_cache_gib * 2**30)
    least = batches.least_visited(num_steps) * job.context_length * config.hidden_size * dtype.itemsize
    if settings.prefix == "auto" and least > allowed:  # listing and checking what would be cached takes minutes then
        reason = f"the cache would take {least:,} bytes or more, but only {allowed:,} are allowed"
        return PrefixPlan("recompute", reason, least)
    name = PrefixCache.key(parent, stage.num_prefix, batches.data.fingerprint, dtype)
    work = PrefixWork(
        directory=f"{job.prefix_cache_dir}/{name}/{batches.order_fingerprint}",
        order_N=batches.visiting_order(num_steps, multiple=prefix_cache.WINDOWS_PER_SHARD),
        packed_path=job.packed_path,
        local_bytes=job.local_bytes,
        store_dir=job.store_dir,
        parent=parent,
        num_frozen=stage.num_prefix,
        dtype=dtype,
        micro_batch=micro_batch,
    )
    cache = work.cache(batches.data)
    shards = cache.shards
    plan = on_rank_zero(
        lambda: plan_prefix(
            config,
            num_frozen=stage.num_prefix,
            num_samples=num_steps * settings.global_batch_size,
            num_windows_to_cache=cache.num_windows(shards),
            num_windows_missing=cache.num_windows(cache.missing(shards)),
            bytes_per_number=dtype.itemsize,
            bytes_available=min(allowed, cache.free_bytes()),
            num_trials=job.num_trials,
        )
    )
    if settings.prefix == "cache" or (settings.prefix == "auto" and plan.choice == "cache"):
        problem = _fill(cache, shards, work, job.resources.prefix_job, is_stopping) or _open(cache, shards)
        if problem is None:
            batches.read_prefix_from(cache, stage.num_prefix)
        elif settings.prefix == "cache":
            raise problem
        else:
            logger.warning("stage %s recomputes its prefix: %s", stage.index, problem.problem)
            plan = replace(plan, choice="recompute", reason=problem.problem)
    return plan


def _fill(
    cache: PrefixCache,
    shards: list[int],
    work: PrefixWork,
    prefix_job: PrefixJobConfig | None,
    is_stopping: Callable[[], bool],
) -> StoreError | None:
    """Compute what is missing by a job, if there is one; these workers compute what this node then still does not see.

    Each worker computes its share; one that does not see the others' files computes the rest as well.

    Returns:
        What kept any of the workers from writing, if anything.
    """
    if prefix_job is not None:
        missing = on_rank_zero(lambda: cache.missing(shards))
        problem = fill_by_job(work, missing, prefix_job, is_stopping) if missing else None
        if problem is not None:
            return problem
    missing, problem = cache.missing(shards), None
    is_missing, is_stopped = any_rank([bool(missing), is_stopping()])  # also: nobody writes before all have looked
    if is_stopped:
        raise StopRequested
    if not is_missing:
        return None
    model = assemble(BlobStore(work.store_dir), work.parent).to(worker_device(), cache.dtype).eval()
    mine = missing[rank() :: world_size()]
    for also_those_of_others in (False, True):
        try:
            cache.fill(cache.missing(shards) if also_those_of_others else mine, model, work.num_frozen, is_stopping)
        except StoreError as error:
            problem = error
        has_problem, is_stopped = any_rank([problem is not None, is_stopping()])
        if is_stopped:
            raise StopRequested
        if has_problem:
            return problem or StoreError("another worker cannot write the prefix cache", "Free some space there")
    return None


def _open(cache: PrefixCache, shards: list[int]) -> StoreError | None:
    try:
        on_all_ranks(lambda: cache.open(shards))
    except StoreError as error:
        return error
    return None
