"""Which font draws the tokens: GNU Unifont if there is one, else a packaged font; always named by its hash."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from growtx.exceptions import SubstrateError

if TYPE_CHECKING:
    from PIL import ImageFont

FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/Library/Fonts")
UNIFONT_NAMES = ("unifont.otf", "unifont.ttf", "unifont-*.otf", "unifont-*.ttf")
PACKAGED = "static/weblate_fonts/kurinto/ttf/KurintoSansSC-Rg.ttf"


@dataclass(frozen=True)
class Font:
    """A font file and the sha256 of its bytes, which is part of every substrate drawn with it."""

    path: Path
    sha256: str
    family: str


def find_font(path: str | None) -> Font:
    """The font at `path`; without one, GNU Unifont of this system, or the font of the `fonts` extra.

    Raises:
        SubstrateError: if the file is missing or not a font, or no font can be found.
    """
    file = Path(path).expanduser() if path else _system_unifont() or _packaged_font()
    if file is None:
        raise SubstrateError("No font to draw tokens with was found", "Install growtx[fonts] or set substrate.font")
    try:
        family = " ".join(part for part in _open(file, 16).getname() if part)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise SubstrateError(f"{file} is not a font ({error})", "Name a .ttf or .otf file") from error
    return Font(file, digest, family)


def load(font: Font, cell_pixels: int) -> ImageFont.FreeTypeFont:
    """The font at the size of a cell."""
    return _open(font.path, cell_pixels)


def _open(path: Path, cell_pixels: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    # Raqm shapes text: it fails on some code points and depends on the system; a cell holds one character anyway.
    return ImageFont.truetype(str(path), cell_pixels, layout_engine=ImageFont.Layout.BASIC)


def _system_unifont() -> Path | None:
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    found = (match for folder in folders for name in UNIFONT_NAMES for match in sorted(folder.rglob(name)))
    return next(found, None)


def _packaged_font() -> Path | None:
    package = importlib.util.find_spec("weblate_fonts")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / PACKAGED
