"""What kind of writing a token is, for figures: the script of its characters, by their Unicode names."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

SCRIPTS = {
    "LATIN": "Latin", "GREEK": "Greek", "CYRILLIC": "Cyrillic", "ARMENIAN": "Armenian", "GEORGIAN": "Georgian",
    "HEBREW": "Hebrew", "ARABIC": "Arabic", "SYRIAC": "Arabic", "DEVANAGARI": "Indic", "BENGALI": "Indic",
    "GURMUKHI": "Indic", "GUJARATI": "Indic", "ORIYA": "Indic", "TAMIL": "Indic", "TELUGU": "Indic", "KANNADA": "Indic",
    "MALAYALAM": "Indic", "SINHALA": "Indic", "THAI": "Thai and Lao", "LAO": "Thai and Lao", "ETHIOPIC": "Ethiopic",
    "CANADIAN": "Canadian syllabics", "YI": "Yi", "VAI": "Vai", "HANGUL": "Hangul", "HIRAGANA": "Kana",
    "KATAKANA": "Kana", "CJK": "Han", "KANGXI": "Han", "BRAILLE": "Symbols", "BOX": "Symbols",
}  # fmt: skip
UNASSIGNED, OTHER, CONTROL = "Unassigned", "Symbols", "Control tokens"


def script_of(text: str) -> str:
    """The script of the first letter of a text; `Symbols` if it has none, `Unassigned` if nothing is assigned."""
    found = UNASSIGNED
    for char in text:
        name = unicodedata.name(char, "")
        script = SCRIPTS.get(name.split(" ")[0].split("-")[0])
        if script is not None and unicodedata.category(char)[0] in "LM":
            return script
        if unicodedata.category(char) not in ("Cn", "Co", "Cs"):
            found = OTHER
    return found


def is_control_name(surface: str) -> bool:
    """Whether a surface is the name of a control token, such as `<pad>`."""
    return len(surface) > 2 and surface[0] == "<" and surface[-1] == ">" and not surface[1:-1].isspace()


def describe(surface: str) -> str:
    """A token in words: its code points, and the name of a single character."""
    points = " ".join(f"U+{ord(char):04X}" for char in surface[:6]) + (" ..." if len(surface) > 6 else "")
    if len(surface) == 1:
        return f"{points} {unicodedata.name(surface, 'without a name').lower()}"
    return f"{points} {surface if surface.isprintable() else repr(surface)}"


def runs(characters: Sequence[str]) -> list[tuple[int, int]]:
    """Consecutive code points of sorted characters as (first, last), longest runs first."""
    found: list[list[int]] = []
    for code in map(ord, characters):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return sorted(((first, last) for first, last in found), key=lambda run: (run[0] - run[1], run[0]))
