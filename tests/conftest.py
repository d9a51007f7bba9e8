"""What all tests share: no network, one thread, and one small grown run to look at."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import tiny


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A compact tokenizer of `tiny.VOCAB_SIZE` ids."""
    return tiny.build_tokenizer()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A run of three stages (one block, a second one, a LoRA phase on both), as training leaves it. Read-only."""
    path = tmp_path_factory.mktemp("shared") / "run"
    tiny.write_run(path, tokenizer)
    return path


@pytest.fixture
def run_dir(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of `finished_run` to damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
