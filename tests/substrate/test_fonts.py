from __future__ import annotations

from importlib.metadata import requires, version
from pathlib import Path

import pytest

from growtx.exceptions import SubstrateError
from growtx.substrate import fonts
from growtx.substrate.fonts import Font, find_font


@pytest.fixture(scope="module")
def packaged() -> Font:
    (font,) = fonts._packaged()
    return font


def test_a_font_is_named_by_family_version_and_hash(packaged: Font) -> None:
    font = find_font(str(packaged.paths[0]))
    assert font.name.startswith("Kurinto Sans") and len(font.sha256) == 64
    assert font.sha256 != packaged.sha256  # of one file and of five


@pytest.fixture
def stand_in(tmp_path: Path, packaged: Font, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a system has as GNU Unifont."""
    (tmp_path / "unifont").mkdir()
    path = tmp_path / "unifont" / "unifont.otf"
    path.write_bytes(packaged.paths[0].read_bytes())
    monkeypatch.setattr(fonts, "FONT_FOLDERS", (str(tmp_path / "absent"), str(tmp_path)))
    return path


def test_fonts_of_the_system_change_nothing_unless_they_are_asked_for(stand_in: Path, packaged: Font) -> None:
    assert find_font().paths == packaged.paths
    assert find_font("unifont").paths == (stand_in,)
    assert find_font(str(packaged.paths[1])).paths == packaged.paths[1:2]
    assert find_font(sha256=Font((stand_in,)).sha256).paths == (stand_in,)


def test_the_packaged_files_draw_together(packaged: Font) -> None:
    font = find_font()
    assert all(font.has(char) for char in "aжΩ汉漢한あا") and not font.has("\ue000")


def test_another_version_of_the_packaged_fonts_is_refused(packaged: Font, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_packaged", lambda: iter([Font(packaged.paths[:4])]))
    with pytest.raises(
        SubstrateError, match=r"have sha256 \w{12}\.\.\., and .* Run pip install weblate-fonts==2026\.1,"
    ):
        find_font()


def test_the_version_that_is_named_is_the_one_that_is_installed_with_growtx() -> None:
    assert fonts.PACKAGE in (requires("growtx") or [])
    assert version("weblate-fonts") == fonts.PACKAGE.partition("==")[2]


def test_a_font_is_found_by_its_hash(packaged: Font) -> None:
    assert find_font(sha256=packaged.sha256).paths == packaged.paths


def test_missing_fonts_are_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FONT_FOLDERS", ())
    monkeypatch.setattr(fonts, "_packaged", lambda: iter(()))
    with pytest.raises(SubstrateError, match=r"packaged fonts are missing\. Run pip install weblate-fonts==2026\.1"):
        find_font()
    with pytest.raises(
        SubstrateError, match=r"font=unifont, and GNU Unifont is not installed\. .*substrate\.font=null"
    ):
        find_font("unifont")


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
