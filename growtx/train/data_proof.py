"""`growtx verify` beyond the blobs: the packed text of a run and the shards of its prefix, where this machine has them.

Both can be made again, so what is wrong with them costs no result that is stored; but the next run would train on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from growtx.data.packing import open_packed
from growtx.exceptions import DataError
from growtx.storage import Storage
from growtx.store.manifest import Manifest
from growtx.store.run_records import DataRecord, read_data_record
from growtx.train.prefix_cache import PrefixCache, find_problem_of_shard

PREFIX_DIR = "prefix"  # beside the packed data, in the cache directory


def verify_data(run: Storage, manifests: Sequence[Manifest]) -> list[str]:
    """One sentence for each file that is not as it was written; none if all are, or are not on this machine.

    Raises:
        StoreError: the run's record of its data is damaged.
    """
    record = read_data_record(run)
    if record is None or record.packed_path is None or "://" in record.packed_path:
        return []
    packed = Path(record.packed_path)
    problems = _packed_problems(record, packed) if packed.exists() else []
    return problems + list(_shard_problems(packed.parent.parent / PREFIX_DIR, record, manifests))


def _packed_problems(record: DataRecord, path: Path) -> list[str]:
    try:
        data = open_packed(str(path))
        data.verify()
    except DataError as error:
        return [f"packed data: {error.problem}; it is packed again when a run needs it"]
    if data.fingerprint != record.data_fingerprint:
        return [f"packed data: {path} is not what the run was trained on; it is packed again when a run needs it"]
    return []


def _shard_problems(directory: Path, record: DataRecord, manifests: Sequence[Manifest]) -> Iterator[str]:
    """Of every prefix that a stage on one of these manifests may have cached."""
    fingerprints = {record.data_fingerprint, *(manifest.data_fingerprint for manifest in manifests)}
    names = {
        PrefixCache.key(manifest, num_frozen, data_fingerprint, dtype)
        for manifest in manifests
        for num_frozen in range(manifest.num_blocks + 1)
        for data_fingerprint in fingerprints
        for dtype in (torch.float32, torch.bfloat16)
    }
    for shard in sorted(directory.glob("*/*/shard-*.npy")):
        if shard.parent.parent.name in names and (problem := find_problem_of_shard(shard, force=True)) is not None:
            yield f"prefix cache: {shard}: {problem}; it is computed again when a run needs it"
