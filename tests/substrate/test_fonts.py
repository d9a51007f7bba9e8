from __future__ import annotations

from pathlib import Path

import pytest

from growtx.exceptions import SubstrateError
from growtx.substrate import fonts
from growtx.substrate.fonts import Font, find_font


@pytest.fixture(scope="module")
def packaged() -> Font:
    pytest.importorskip("weblate_fonts")
    (font,) = fonts._packaged()
    return font


def test_a_font_is_named_by_family_version_and_hash(packaged: Font) -> None:
    font = find_font(str(packaged.paths[0]))
    assert font.name.startswith("Kurinto Sans") and len(font.sha256) == 64
    assert font.sha256 != packaged.sha256  # of one file and of five


def test_unifont_of_the_system_is_preferred(tmp_path: Path, packaged: Font, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unifont").mkdir()
    stand_in = tmp_path / "unifont" / "unifont.otf"
    stand_in.write_bytes(packaged.paths[0].read_bytes())
    monkeypatch.setattr(fonts, "FONT_FOLDERS", (str(tmp_path / "absent"), str(tmp_path)))
    assert find_font().paths == (stand_in,)
    assert find_font(str(packaged.paths[1])).paths == packaged.paths[1:2]  # unless another is asked for


def test_without_unifont_the_packaged_files_draw_together(packaged: Font, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FONT_FOLDERS", ())
    font = find_font()
    assert font.paths == packaged.paths
    assert all(font.has(char) for char in "aжΩ汉漢한あا") and not font.has("\ue000")


def test_a_font_is_found_by_its_hash(packaged: Font) -> None:
    assert find_font(sha256=packaged.sha256).paths == packaged.paths


def test_without_any_font_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FONT_FOLDERS", ())
    monkeypatch.setattr(fonts, "_packaged", lambda: iter(()))
    with pytest.raises(SubstrateError, match=r"no font to draw tokens with\. Run pip install weblate-fonts"):
        find_font()


def test_a_font_that_is_not_one_is_refused(tmp_path: Path, packaged: Font) -> None:
    text, cut = tmp_path / "text.ttf", tmp_path / "cut.ttf"
    text.write_text("not a font")
    cut.write_bytes(packaged.paths[0].read_bytes()[:5000])
    for path in (text, cut):
        with pytest.raises(SubstrateError, match=r"is not a font"):
            find_font(str(path))


def test_a_missing_font_is_refused() -> None:
    with pytest.raises(SubstrateError, match=r"There is no font file /nowhere/a\.ttf"):
        find_font("/nowhere/a.ttf")


def test_a_hash_that_no_font_has_is_refused() -> None:
    with pytest.raises(SubstrateError, match=r"sha256 000000000000.*not on this machine\. Give its file"):
        find_font(sha256="0" * 64)
