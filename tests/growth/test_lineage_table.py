"""The tables of a lineage show stages with their scores, and every blob with the stage that wrote it."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from growtx.growth.lineage import blob_table, open_lineage, stage_table


def printed(table: Table, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_every_stage_is_a_row_with_its_score_before_and_after(finished_run: Path) -> None:
    text = printed(stage_table(open_lineage(str(finished_run))))
    for part in ("1 depth-1", "2 depth-2", "3 tune-2", "3.000 → 2.500", "1.000 → 0.500", "steps"):
        assert part in text


def test_every_blob_is_a_row_with_its_size_and_the_stage_that_wrote_it(finished_run: Path) -> None:
    lineage = open_lineage(str(finished_run))
    rows = printed(blob_table(lineage)).splitlines()
    assert [row for row in rows if "substrate" in row and "1 depth-1" in row and "17,6" in row]
    adapter = lineage.last.blocks[1].adapters[0]
    assert [row for row in rows if "block 2 + adapter" in row and adapter[:12] in row and "3 tune-2" in row]
    assert [row for row in rows if "norm + head" in row and lineage.last.head[:12] in row and "3 tune-2" in row]


def test_the_tables_fit_a_terminal_of_80_columns(finished_run: Path) -> None:
    lineage = open_lineage(str(finished_run))
    assert "…" not in printed(stage_table(lineage), 80) + printed(blob_table(lineage), 80)


def test_a_missing_blob_is_shown_as_missing(run_dir: Path) -> None:
    lineage = open_lineage(str(run_dir))
    next(run_dir.rglob(f"{lineage.last.head}.safetensors")).unlink()
    assert [row for row in printed(blob_table(lineage)).splitlines() if "norm + head" in row and "missing" in row]
