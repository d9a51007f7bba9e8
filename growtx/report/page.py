"""A self-contained HTML page of sections: one sentence, a picture, its numbers as a table. No network, no scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from growtx.redaction import redact_text

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Table:
    """Rows of text; columns in `text_columns` are aligned left, all others are numbers and aligned right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the page."""

    value: str
    label: str


@dataclass(frozen=True)
class Section:
    """One thing the page shows.

    `lead` says in words what the picture shows, `picture` is an HTML element, `folded` tables open on a click,
    `command` made the picture where another one made the page.
    """

    title: str
    lead: str = ""
    picture: str = ""
    table: Table | None = None
    note: str = ""
    folded: Sequence[tuple[str, Table]] = ()
    command: str = ""


@dataclass(frozen=True)
class Samples:
    """Texts that the model wrote, one group per stage (label -> prompt and continuation)."""

    groups: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()


@dataclass(frozen=True)
class Page:
    """Everything the template shows, in order."""

    title: str
    headline: str
    alarm: str = ""
    subtitle: str = ""
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()
    samples: Samples = field(default_factory=Samples)
    closing_sections: Sequence[Section] = ()
    missing: Sequence[str] = ()
    command: str = ""
    environment: Sequence[tuple[str, str]] = ()
    config: str = ""


def render_page(page: Page) -> str:
    """The page as HTML, by the template that ships with the package; credentials in its texts are masked."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("growtx.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_masked,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(page=page, style_hash=_style_hash(environment))


def _style_hash(environment: Environment) -> str:
    """What the page's Content-Security-Policy allows besides pictures in the page: its own style, and no script."""
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, "page.html.j2")
    style = source.partition("<style>")[2].partition("</style>")[0]
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def _masked(value: Any) -> Any:
    """Called with everything that the template shows; pictures are HTML already."""
    return redact_text(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
