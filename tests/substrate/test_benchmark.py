from __future__ import annotations

import pytest

from growtx.substrate import benchmark
from growtx.substrate.build import SubstrateConfig
from tests.substrate import reference


def test_the_parts_and_the_ratio_to_the_plain_procedure_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_in_own_process", benchmark._build)  # a new process takes seconds to import torch
    surfaces = [chr(code) for code in range(0x400, 0x450)]
    rows = benchmark.run(surfaces, SubstrateConfig(), 32, reference.picture)
    values = {row["measure"]: row["value"] for row in rows}
    assert all(value > 0 for value in values.values())
    assert values["whole build"] >= 0 and values["peak memory of the build"] < 4
    assert values["speed-up"] == values["a picture, plain procedure"] / values["a picture"]
    assert {row["unit"] for row in rows} == {"s", "GiB", "ms", "x"}
