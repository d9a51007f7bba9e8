"""Hugging Face directories as other programs expect them, whichever version of transformers they have.

transformers 5 writes some settings only under their new names, names its generic tokenizer class anew, and its files
can be read by their owner alone. What is written here opens in 4.57 and in 5, and follows the umask.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from growtx.storage import current_umask

CONFIG_FILE, TOKENIZER_CONFIG_FILE = "config.json", "tokenizer_config.json"


def save_directory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: Path) -> None:
    """Write model and tokenizer into a directory."""
    with quiet_on_the_cpu():
        model.save_pretrained(directory)
    _edit(directory / CONFIG_FILE, _older_settings(model.config))
    if tokenizer is not None:
        save_tokenizer(tokenizer, directory)
    mask = current_umask()
    for path in directory.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def quiet_on_the_cpu() -> Iterator[None]:
    """Let DeepSpeed, which transformers imports to save a model, find the CPU without announcing it.

    The process may later start workers that shall find their GPUs, so nothing of it stays in the environment.
    """
    if "DS_ACCELERATOR" in os.environ:
        yield
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        yield
    finally:
        del os.environ["DS_ACCELERATOR"]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a tokenizer so that versions before 5 know its class."""
    tokenizer.save_pretrained(directory)
    _edit(directory / TOKENIZER_CONFIG_FILE, {"tokenizer_class": "PreTrainedTokenizerFast"}, drop=("backend",))


def _older_settings(config: Any) -> dict[str, Any]:
    """What versions before 5 read instead of `rope_parameters` and `dtype`; without it they take their defaults."""
    rope = getattr(config, "rope_parameters", None)
    settings: dict[str, Any] = {"torch_dtype": str(config.dtype).removeprefix("torch.")} if config.dtype else {}
    if not rope:
        return settings
    theta, share = rope["rope_theta"], rope.get("partial_rotary_factor", 1.0)
    settings |= {"rope_theta": theta, "partial_rotary_factor": share}
    if config.model_type == "gpt_neox":
        settings |= {"rotary_pct": share, "rotary_emb_base": theta}
    return settings


def _edit(path: Path, changes: dict[str, Any], *, drop: tuple[str, ...] = ()) -> None:
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree = {key: value for key, value in tree.items() if key not in drop} | changes
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
