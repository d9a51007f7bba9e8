"""A run's configuration small enough to prepare in a second, on a corpus of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from growtx.config import build_config
from growtx.run.config import RunConfig
from tests import tiny


def write_corpus(directory: Path, num_documents: int = 60) -> str:
    """Documents that differ, so that some of them are held out."""
    path = directory / "texts.jsonl"
    words = tiny.TEXT.split()
    texts = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 40)) for i in range(num_documents)]
    path.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def tree(corpus: str, **changes: Any) -> dict[str, Any]:
    """A plan of two blocks on 32 dimensions and binary codes."""
    return {
        "name": "small",
        "model": {"hidden_size": 32, "num_attention_heads": 2, "context_length": 32},
        "tokenizer": {"vocab_size": tiny.VOCAB_SIZE},
        "substrate": {"kind": "binary"},
        "data": {"sources": [{"files": corpus}], "validation_fraction": 0.2},
        "plan": {"grow": {"blocks": 2}, "train": {"steps": 3}},
        "training": {"global_batch_size": 4},
        **changes,
    }


def config(corpus: str, **changes: Any) -> RunConfig:
    return build_config(RunConfig, tree(corpus, **changes))
