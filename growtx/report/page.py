"""A self-contained HTML page of sections: one sentence, a picture, its numbers as a table. No network, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


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
    """The page as HTML, by the template that ships with the package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("growtx.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(page=page)
