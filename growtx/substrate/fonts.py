"""Which font draws the tokens, always named by the sha256 of its files.

Without a choice, five Kurinto files of the package `weblate-fonts` draw together, each for the characters that those
before it lack. Its version is pinned, so that one configuration gives one substrate on every machine, whatever fonts
are installed there. `unifont` is GNU Unifont of the system, the paper's font; any other name is a file.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtx.exceptions import SubstrateError

if TYPE_CHECKING:
    from PIL import ImageFont

FONT_FOLDERS = ("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts", "/Library/Fonts")
UNIFONT_NAMES = ("unifont.otf", "unifont.ttf", "unifont-[0-9]*.otf", "unifont-[0-9]*.ttf")
UNIFONT = "unifont"
PACKAGE = "weblate-fonts==2026.1"
PACKAGED_SHA256 = "1d096b4912f0f99639049d5712aa43760481c1e4e860accc7275aebe53d5171a"
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


def find_font(name: str | None = None, *, sha256: str | None = None) -> Font:
    """The packaged fonts, GNU Unifont of this system, or the font of a file.

    Args:
        name: None, `unifont`, or a font file.
        sha256: take what has this hash instead, wherever it is, to build a substrate again.

    Raises:
        SubstrateError: the font is not there, is none, or is another version of the packaged fonts.
    """
    if sha256 is not None:
        return _of_hash([_file(name)] if name and name != UNIFONT else [*_packaged(), *_unifonts()], sha256)
    if name is None:
        return _pinned()
    if name != UNIFONT:
        return _checked(_file(name))
    for font in _unifonts():
        return _checked(font)
    raise SubstrateError(
        "substrate.font=unifont, and GNU Unifont is not installed",
        "Install it (Debian: apt-get install fonts-unifont), or set substrate.font=null for the packaged fonts",
    )


def _file(path: str) -> Font:
    return Font((Path(path).expanduser(),))


def _pinned() -> Font:
    """The packaged fonts, of which another version would draw another substrate."""
    for font in _packaged():
        if _checked(font).sha256 == PACKAGED_SHA256:
            return font
        raise SubstrateError(
            f"The packaged fonts here have sha256 {font.sha256[:12]}..., and not that of {PACKAGE}",
            f"Run pip install {PACKAGE}, or name a font file as substrate.font",
        )
    raise SubstrateError("The packaged fonts are missing", f"Run pip install {PACKAGE}, or set substrate.font")


def _of_hash(fonts: Iterable[Font], sha256: str) -> Font:
    for font in fonts:
        if _checked(font).sha256 == sha256:
            return font
    problem = f"The substrate was drawn with a font of sha256 {sha256[:12]}..., which is not on this machine"
    raise SubstrateError(
        problem, f"Run pip install {PACKAGE}" if sha256 == PACKAGED_SHA256 else "Give its file as the font"
    )


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
