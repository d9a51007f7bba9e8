from __future__ import annotations

import pytest

from benchmarks import plain_glyphs as reference
from benchmarks import substrate
from growtx.substrate.build import SubstrateConfig


def test_the_parts_and_the_ratio_to_the_plain_procedure_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(substrate, "_in_own_process", substrate._build)  # a new process takes seconds to import torch
    surfaces = [chr(code) for code in range(0x400, 0x450)]
    rows = substrate.measure_substrate(surfaces, SubstrateConfig(), 32, reference.picture)
    values = {row["measure"]: row["value"] for row in rows}
    assert all(value > 0 for value in values.values())
    assert values["whole build"] >= 0 and values["peak memory of the build"] < 4
    assert values["speed-up"] == values["a picture, plain procedure"] / values["a picture"]
    assert {row["unit"] for row in rows} == {"s", "GiB", "ms", "x"}
