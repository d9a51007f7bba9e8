"""A synthetic run directory: what a growth run of four stages leaves, without the half hour that a real one takes."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

STEPS_PER_STAGE = 60
TOKENS_PER_STEP = 8_192


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stage_loss(stage: int, step: int) -> float:
    """Falls within a stage and jumps when a block is added; wiggles as losses do, without randomness."""
    floor = 4.4 - 0.35 * stage
    spike = 4.6 if stage == 1 else 0.8
    return floor + spike * math.exp(-step / 9) + 0.06 * math.sin(2.1 * step) + 0.04 * math.cos(7.3 * step)


def write_run(path: Path, *, num_stages: int = 4, finished: int | None = None) -> Path:
    """A run directory of `num_stages`, of which the first `finished` have a manifest."""
    (path / "manifests").mkdir(parents=True)
    config = {
        "name": "synthetic",
        "plan": {"budget": 1_000_000, "stages": [{"add": 1, "active": 1} for _ in range(num_stages)]},
        "data": {"sources": [{"files": "texts/*.parquet"}]},
    }
    run = {
        "config": config,
        "command": ["python", "rayjobs/grow.py", "--preset", "demo", "plan.model.hidden_size=128"],
        "git_commit": "0123456789abcdef",
        "versions": {"growtx": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0"},
    }
    (path / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
    rows = [row for stage in range(1, num_stages + 1) for row in stage_rows(stage)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for stage in range(1, (num_stages if finished is None else finished) + 1):
        (path / "manifests" / f"{stage:02d}-grow-{stage}.json").write_text(json.dumps(manifest(stage), indent=1))
    return path


def stage_rows(stage: int) -> list[dict[str, Any]]:
    first = (stage - 1) * STEPS_PER_STAGE
    common = {"stage": stage, "stage_name": f"grow-{stage}", "num_blocks": stage, "active_parameters": 900_000}

    def evaluated(when: str, step: int, at: int) -> dict[str, Any]:
        loss = stage_loss(stage, at) + 0.05
        return common | {
            "step": first + step,
            "num_tokens": (first + step) * TOKENS_PER_STEP,
            "eval/when": when,
            "eval/loss": loss,
            "eval/bits_per_byte": loss / 1.9,
        }

    trained = [
        common
        | {
            "step": first + step,
            "num_tokens": (first + step) * TOKENS_PER_STEP,
            "train/loss": stage_loss(stage, step),
            "train/learning_rate": 1e-3,
            "train/tokens_per_second": 21_000 - 2_500 * stage + 900 * math.sin(step),
            "train/grad_norm": 0.8,
            "peak_memory_bytes": 4.1e8 + 3e7 * stage,
            "time_seconds": 0.45 * step,
        }
        for step in range(1, STEPS_PER_STAGE + 1)
    ]
    return [evaluated("start", 0, 0), *trained, evaluated("end", STEPS_PER_STAGE, STEPS_PER_STAGE)]


def manifest(stage: int) -> dict[str, Any]:
    end = stage_rows(stage)[-1]
    return {
        "name": f"grow-{stage}",
        "index": stage,
        "stage": {"add": 1, "active": 1, "init": "random"},
        "num_blocks": stage,
        "num_tokens": end["num_tokens"],
        "active_parameters": 900_000,
        "total_parameters": 1_300_000 + 200_000 * stage,
        "blobs": {
            "substrate": sha("substrate"),
            "blocks": [{"blob": sha(f"b{i}"), "adapters": []} for i in range(stage)],
        },
        "metrics": {
            "eval/loss": end["eval/loss"],
            "eval/bits_per_byte": end["eval/bits_per_byte"],
            "eval/bits_per_byte_by_source": {
                "english": 1.1 * end["eval/bits_per_byte"],
                "русский": 0.8 * end["eval/bits_per_byte"],
            },
            "seconds": 31.0 + stage,
            "ended_by": "tokens",
        },
        "samples": [
            {"prompt": "Anna lives in", "text": " Berlin and works as a teacher." if stage > 2 else " the of the the"},
            {"prompt": "安娜住在", "text": "柏林。" if stage > 2 else "的的的"},
        ],
        "parent": None if stage == 1 else f"{stage - 1:02d}-grow-{stage - 1}.json",
        "tokenizer_fingerprint": sha("tokenizer"),
        "substrate_fingerprint": sha("substrate"),
        "frozen_check": {"num_tensors": 1 + 8 * (stage - 1), "before": sha("frozen"), "after": sha("frozen")},
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")
