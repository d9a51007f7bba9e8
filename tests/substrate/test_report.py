from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from growtx.exceptions import SubstrateError
from growtx.substrate import rendering
from growtx.substrate.build import Kind, SubstrateConfig
from growtx.substrate.fonts import find_font
from growtx.substrate.pictures import unpack
from growtx.substrate.rendering import render_strips
from growtx.substrate.report import as_text, substrate_report

SURFACES = [
    "<pad>", "</s>", "Ｅ２", "ab", "abc", "жук", "山", "\ue000", "\U000e0fff",
    *(chr(code) for code in range(ord("A"), ord("A") + 26)),
    *(chr(code) for code in range(ord("А"), ord("А") + 32)),
]  # fmt: skip


def report_of(kind: Kind, out_dir: str | None = None, **options: Any) -> dict[str, Any]:
    return substrate_report(
        SURFACES, SubstrateConfig(kind=kind, **options), hidden_size=32, vocabulary="letters", out_dir=out_dir
    )


def test_look_alikes_are_counted_and_named() -> None:
    report = report_of("glyph")
    assert report["shared_vectors"]["num_tokens"] == report["look_alikes"]["num_tokens"] >= 16
    groups = [group["examples"] for group in report["look_alikes"]["largest"]]
    assert ["U+0041 latin capital letter a", "U+0410 cyrillic capital letter a"] in groups
    assert report["lengths"]["min"] == pytest.approx(1, abs=1e-6) == report["lengths"]["max"]
    assert report["missing_glyphs"]["num_tokens"] >= 1 and report["code_cost"]["num_moved"] == 0


def test_with_codes_no_vector_is_shared_and_the_cost_is_said() -> None:
    report = report_of("glyph+code")
    assert report["shared_vectors"]["num_tokens"] == 0 < report["look_alikes"]["num_tokens"]
    cost = report["code_cost"]
    assert cost["num_moved"] == report["look_alikes"]["num_tokens"] - report["look_alikes"]["num_groups"]
    assert 0.9 < cost["min_cosine"] <= cost["mean_cosine"] < 1


def test_the_rank_of_bits_is_their_number() -> None:
    report = report_of("binary")
    assert report["rank"] == int(np.ceil(np.log2(len(SURFACES)))) and report["shared_vectors"]["num_tokens"] == 0
    assert "look_alikes" not in report


@pytest.mark.parametrize("kind", ["glyph+code", "binary"])
def test_text_and_files_tell_the_same(kind: Kind, tmp_path: Path) -> None:
    report = report_of(kind, out_dir=str(tmp_path / "report"))
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == json.loads(json.dumps(report))
    text = as_text(report)
    assert report["fingerprint"] in text and f"rank {report['rank']}" in text
    pictures = {"spectrum", "map"} | ({"contact-sheet", "look-alikes"} if kind == "glyph+code" else set())
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == pictures
    for name in pictures:
        pixels = np.asarray(Image.open(tmp_path / "report" / f"{name}.png").convert("L"))
        assert pixels.std() > 5  # something is drawn


def test_a_vocabulary_without_look_alikes_has_a_report_too(tmp_path: Path) -> None:
    report = substrate_report(
        ["<pad>", "a", "b", "山", "水"], SubstrateConfig(), hidden_size=8, vocabulary="five", out_dir=str(tmp_path)
    )
    assert report["look_alikes"] == {"num_tokens": 0, "num_groups": 0, "largest": []}
    assert (tmp_path / "look-alikes.png").is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SubstrateError, match="cannot be written"):
        report_of("binary", out_dir=str(tmp_path / "file" / "report"))


def test_unpacked_pictures_are_upright() -> None:
    rows, columns = np.nonzero(unpack(render_strips(["L"], find_font(), 32, None))[0])
    top, bottom = columns[rows == rows.min()], columns[rows == rows.max()]
    assert np.ptp(bottom) > np.ptp(top) and bottom.min() == top.min()


@pytest.mark.parametrize(
    ("text", "script"),
    [("ab", "Latin"), ("1ж", "Cyrillic"), ("山", "Han"), ("い", "Kana"), ("+", "Symbols"), ("\u0378", "Unassigned")],
)
def test_scripts_are_told_by_the_first_letter(text: str, script: str) -> None:
    assert rendering.script_of(text) == script


def test_runs_of_code_points_are_joined_longest_first() -> None:
    assert rendering.runs(list("abcxz{|}")) == [(ord("z"), ord("}")), (ord("a"), ord("c")), (ord("x"), ord("x"))]
