"""Peak memory is that of a stage: it sees what is allocated, and a new stage starts from what is in use then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from growtx.train.memory import peak_memory_bytes, reset_peak_memory

CLEAR = Path("/proc/self/clear_refs")
SIZE = 256 * 2**20


def test_an_allocation_is_seen_at_its_peak_and_forgotten_by_the_next_stage() -> None:
    reset_peak_memory()
    before = peak_memory_bytes()
    tensor = torch.ones(SIZE, dtype=torch.uint8)
    held = peak_memory_bytes()
    assert held >= before + SIZE // 2
    del tensor
    assert peak_memory_bytes() >= held - SIZE // 8  # the kernel counts pages in batches
    if not os.access(CLEAR, os.W_OK):
        pytest.skip("this kernel does not let a process reset its peak")
    reset_peak_memory()
    assert peak_memory_bytes() < held - SIZE // 2


def test_a_peak_that_cannot_be_reset_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    reset_peak_memory()
    assert peak_memory_bytes() > 10 * 2**20
