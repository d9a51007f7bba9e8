"""Which font draws the tokens, always named by the sha256 of its files.

GNU Unifont, the paper's font, is taken if it is given or found on the system. Otherwise the fonts of the `fonts`
extra (`weblate-fonts`) draw together: five Kurinto files, each for the characters that those before it lack.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtx.exceptions import SubstrateError

if TYPE_CHECKING:
    from PIL import ImageFont

FONT_FOLDERS = ("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts", "/Library/Fonts")
UNIFONT_NAMES = ("unifont.otf", "unifont.ttf", "unifont-[0-9]*.otf", "unifont-[0-9]*.ttf")
PACKAGED_FOLDER = "static/weblate_fonts/kurinto/ttf"
PACKAGED_FILES = tuple(f"KurintoSans{region}-Rg.ttf" for region in ("", "SC", "KR", "JP", "TC"))


@dataclass(frozen=True)
class Font:
    """One or more font files; a character is drawn by the first that has it."""

    paths: tuple[Path, ...]

    @cached_property
    def sha256(self) -> str:
        """Hash of the file; with several files, of their concatenated hashes."""
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        """Family and version of the first file."""
        names = self._tables[0]["name"]
        parts = (names.getBestFamilyName(), names.getDebugName(5))
        return " ".join(part for part in parts if part)

    @cached_property
    def characters(self) -> tuple[frozenset[int], ...]:
        """Code points that each file has glyphs for."""
        return tuple(frozenset(table.getBestCmap() or ()) for table in self._tables)

    @cached_property
    def _tables(self) -> list[Any]:
        from fontTools.ttLib import TTFont

        return [TTFont(path, lazy=True, fontNumber=0) for path in self.paths]

    def has(self, char: str) -> bool:
        """Whether there is a glyph for a character."""
        return any(ord(char) in known for known in self.characters)

    def at_size(self, pixels: int) -> Faces:
        """The font ready to draw at a size."""
        return Faces(self, pixels)


class Faces:
    """A font at a size: which file draws a character."""

    def __init__(self, font: Font, pixels: int) -> None:
        from PIL import ImageFont

        # Raqm shapes text: it fails on some code points and depends on the system; a cell holds one character anyway.
        basic = ImageFont.Layout.BASIC
        self._faces = [ImageFont.truetype(str(path), pixels, layout_engine=basic) for path in font.paths]
        self._characters = font.characters if len(font.paths) > 1 else ()

    def of(self, char: str) -> ImageFont.FreeTypeFont:
        """The first file that has the character; the very first draws characters that none has."""
        for face, known in zip(self._faces, self._characters, strict=False):
            if ord(char) in known:
                return face
        return self._faces[0]


def find_font(path: str | None = None, *, sha256: str | None = None) -> Font:
    """The font at `path`; without one, GNU Unifont of this system, else the packaged fonts.

    Args:
        path: a font file.
        sha256: take the first that has this hash instead, to build a substrate again.

    Raises:
        SubstrateError: if the file is missing or not a font, or no (such) font can be found.
    """
    candidates = [Font((Path(path).expanduser(),))] if path else [*_unifonts(), *_packaged()]
    for font in candidates:
        if sha256 is None or _checked(font).sha256 == sha256:
            return _checked(font)
    if sha256 is not None:
        problem = f"The substrate was drawn with a font of sha256 {sha256[:12]}..., which is not on this machine"
        raise SubstrateError(problem, "Give its file as the font")
    raise SubstrateError("There is no font to draw tokens with", "Run pip install weblate-fonts, or set substrate.font")


def _checked(font: Font) -> Font:
    """Refuse what cannot be read as a font, before anything is drawn with it."""
    for path in font.paths:
        if not path.is_file():
            raise SubstrateError(f"There is no font file {path}", "Check substrate.font")
    try:
        _ = font.sha256, font.name, font.characters, font.at_size(16)
    except Exception as error:  # fontTools and Pillow raise many kinds for a file that is no font
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise SubstrateError(f"{font.paths[0]} is not a font ({reason})", "Name a .ttf or .otf file") from error
    return font


def _unifonts() -> Iterator[Font]:
    for folder in FONT_FOLDERS:
        for name in UNIFONT_NAMES:
            yield from (Font((match,)) for match in sorted(Path(folder).expanduser().rglob(name)))


def _packaged() -> Iterator[Font]:
    package = importlib.util.find_spec("weblate_fonts")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / PACKAGED_FOLDER
        yield Font(tuple(folder / name for name in PACKAGED_FILES))
