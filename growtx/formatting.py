"""Numbers as people read them: 1.23 M parameters, 4 min 5 s, 312 MiB. `None` becomes a dash everywhere.

Number and unit are joined by a no-break space.
"""

from __future__ import annotations

import math

MISSING = "–"
NBSP = "\u00a0"


def abbreviated(value: float | None) -> str:
    """A number of parameters or tokens with three significant digits: 950, 12.3 k, 1.25 M, 68.9 B."""
    if value is None or not math.isfinite(value):
        return MISSING
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:
            return f"{_three_digits(value / limit)}{NBSP}{suffix}"
    return f"{value:g}"


def size(num_bytes: float | None) -> str:
    """Bytes in binary units."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return MISSING
    for limit, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(num_bytes) >= limit:
            return f"{_three_digits(num_bytes / limit)}{NBSP}{suffix}"
    return f"{num_bytes:.0f}{NBSP}B"


def duration(seconds: float | None) -> str:
    """8.3 s, 4 min 5 s, 2 h 7 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes}{NBSP}min {round(seconds) % 60}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60}{NBSP}min"


def decimal(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals, so that columns align."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, always with its sign."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.1234 as 12.3 %."""
    return MISSING if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{digits}f}{NBSP}%"


def plural(number: int, noun: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def short_hash(value: str | None) -> str:
    """The first ten hex digits, enough to tell blobs of one run apart."""
    return value.removeprefix("sha256:")[:10] if value else MISSING


def _three_digits(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"
