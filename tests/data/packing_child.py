"""Packs the files that it is told of, in the way of large sources; a process that tests may kill."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from growtx.config import build_config
from growtx.data import packing_job, sources
from growtx.data.sources import DataConfig
from tests.data.byte_tokenizer import byte_tokenizer

LIMITS = {"SMALL_BYTES": 1000, "SMALLEST_PART": 500_000, "LARGEST_PART": 500_000, "SHARD_BYTES": 400_000}
LENGTH = 64


def pack(files: str, cache: str) -> Any:
    for name, value in LIMITS.items():
        setattr(sources, name, value)
    config = build_config(DataConfig, {"sources": [{"files": files}], "validation_fraction": 0.1})
    return packing_job.pack(config, byte_tokenizer(), context_length=LENGTH, cache_dir=cache)[0]


def main(files: str, cache: str) -> None:
    import ray

    variables = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(Path(__file__).parents[2])}
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, runtime_env={"env_vars": variables})
    data = pack(files, cache)
    print(json.dumps({"fingerprint": data.fingerprint, "path": data.path}))


if __name__ == "__main__":
    main(*sys.argv[1:])
