"""Figures of a substrate: what tokens look like, which look alike, the spectrum, and a map of all vectors.

Figures are made without pyplot, so that nothing global is touched. Text in scripts that matplotlib's font lacks is
never written: tokens show themselves by their own pictures, and are named by code points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from growtx.substrate import rendering
from growtx.substrate.rendering import Pixels, polar_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, GROUND, LINE, ACCENT = "#1b1f24", "#5b6570", "#eef1f5", "#0072B2", "#D55E00"
SCRIPT_COLOURS = {
    "Latin": "#0072B2", "Cyrillic": "#D55E00", "Greek": "#CC79A7", "Han": "#009E73", "Hangul": "#E69F00",
    "Kana": "#F0E442", "Arabic": "#56B4E9", "Hebrew": "#8C564B", "Indic": "#7F3C8D", "Symbols": "#9AA5B1",
}  # fmt: skip
ELSE = "Other scripts"
DPI = 130
TOKENS_PER_ROW = 24
GAP = 1  # pixels around each picture
MAP_TOKENS = 4000
MAP_COMPONENTS = 64


def unpack(packed: Pixels) -> Pixels:
    """Pictures as images, 1 for ink: [N, S, S]."""
    side = int(np.sqrt(packed.shape[1] * 8))
    images = np.zeros((len(packed), side * side), dtype=np.uint8)
    images[:, polar_order(side)] = np.unpackbits(packed, axis=1)
    return images.reshape(-1, side, side)


def contact_sheet(packed: Pixels, surfaces: Sequence[str], report: dict[str, Any]) -> Figure:
    """Rows of tokens as the substrate draws them, one row for each script and length."""
    rows = _sheet_rows(surfaces)
    title = f"What {report['vocabulary']} tokens look like"
    figure, axes = _rows_figure(len(rows), TOKENS_PER_ROW, 0.4, title, report, margin=1.7)
    _show(axes, unpack(packed[[token for _, tokens in rows for token in tokens]]), TOKENS_PER_ROW)
    for index, (label, _) in enumerate(rows):
        axes.text(-0.3, index + 0.45, label, ha="right", va="center", fontsize=9, color=INK)
    return figure


def look_alikes(packed: Pixels, report: dict[str, Any]) -> Figure:
    """The largest groups of tokens that share a picture: the picture, and the tokens."""
    groups = report["look_alikes"]["largest"]
    counts = report["look_alikes"]
    title = f"{counts['num_tokens']:,} of {report['num_tokens']:,} tokens look exactly like another"
    figure, axes = _rows_figure(max(1, len(groups)), 15, 0.6, title, report, margin=0.5)
    _show(axes, unpack(packed[[group["ids"][0] for group in groups]]), 1)
    for index, group in enumerate(groups):
        names = [_readable(example) for example in group["examples"]]
        more = f", and {group['size'] - 3:,} more" if group["size"] > 3 else ""
        axes.text(1.3, index + 0.3, f"{group['size']:,} tokens", va="center", fontsize=10, color=INK, weight="bold")
        axes.text(1.3, index + 0.68, ",  ".join(names[:3]) + more, va="center", fontsize=8, color=GREY)
    return figure


def spectrum(values: NDArray[np.float64], report: dict[str, Any]) -> Figure:
    """Share of squared length along each principal direction, and cumulated."""
    figure = _figure(10, 4.2, f"Spectrum: rank {report['rank']} of {len(values)}", report)
    left, right = figure.subplots(1, 2)
    shares = values / values.sum()
    order = np.arange(1, len(values) + 1)
    positive = shares > shares[0] * 1e-12
    left.loglog(order[positive], shares[positive], color=LINE, linewidth=1.8)
    left.set(xlabel="principal direction", ylabel="share of squared length")
    right.plot(order, 100 * np.cumsum(shares), color=LINE, linewidth=1.8)
    for share, needed in report["components_for_share"].items():
        right.plot([needed], [100 * float(share)], "o", color=ACCENT)
        text = f"{float(share):.0%} in {needed}"
        right.annotate(text, (needed, 100 * float(share)), (8, -12), textcoords="offset points", fontsize=9, color=INK)
    right.set(xlabel="number of directions", ylabel="cumulative share, %", ylim=(0, 104))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def token_map(weight: NDArray[np.float32], surfaces: Sequence[str], report: dict[str, Any]) -> Figure:
    """t-SNE of a sample of tokens, coloured by script (the paper's Figure 4)."""
    from sklearn.manifold import TSNE

    tokens = _sample(surfaces)
    points = weight[tokens][:, :MAP_COMPONENTS]
    perplexity = min(30.0, max(1.0, (len(tokens) - 1) / 3))
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    figure = _figure(9, 8, f"Map of {len(tokens):,} tokens (t-SNE)", report)
    axes = figure.subplots()
    kinds = np.array([_map_kind(surfaces[token]) for token in tokens])
    for kind, colour in {ELSE: "#D0D5DB", **SCRIPT_COLOURS}.items():
        chosen = kinds == kind
        if chosen.any():
            axes.scatter(places[chosen, 0], places[chosen, 1], s=7, color=colour, linewidths=0, alpha=0.8, label=kind)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=2.5, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure


def _map_kind(surface: str) -> str:
    script = rendering.script_of(surface)
    return script if script in SCRIPT_COLOURS else ELSE


def _sample(surfaces: Sequence[str]) -> NDArray[np.intp]:
    """Tokens for the map: the same number of every script, if it has that many, drawn with a fixed seed."""
    kinds = np.array([_map_kind(surface) for surface in surfaces])
    source = np.random.RandomState(0)
    per_kind = MAP_TOKENS // len(set(kinds.tolist()))
    chosen = [source.permutation(np.flatnonzero(kinds == kind))[:per_kind] for kind in sorted(set(kinds.tolist()))]
    return np.sort(np.concatenate(chosen))


def _sheet_rows(surfaces: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Labels and tokens of the contact sheet: evenly spaced tokens of every script and length that is common."""
    groups: dict[tuple[str, int], list[int]] = {}
    for token, surface in enumerate(surfaces):
        if rendering.is_control_name(surface):
            key = (rendering.CONTROL, 1)
        elif all("\uff10" <= char <= "\uff26" for char in surface) and len(surface) % 2 == 0:
            key = ("Bytes", 1)
        else:
            key = (rendering.script_of(surface), min(len(surface), 6))
        groups.setdefault(key, []).append(token)
    common = [(key, tokens) for key, tokens in groups.items() if len(tokens) >= TOKENS_PER_ROW]
    common.sort(key=lambda item: (item[0][1], -len(item[1])))
    names = {
        1: "",
        2: ", 2 characters",
        3: ", 3 characters",
        4: ", 4 characters",
        5: ", 5 characters",
        6: ", 6 and more",
    }
    return [
        (script + names[length], [tokens[round(at)] for at in np.linspace(0, len(tokens) - 1, TOKENS_PER_ROW)])
        for (script, length), tokens in common[:40]
    ]


def _show(axes: Axes, images: Pixels, columns: int) -> None:
    """Pictures in rows of `columns`, each on its own background, so that empty ones show; one unit of the axes each."""
    from matplotlib.colors import ListedColormap

    if not len(images):
        return
    framed = np.pad(images, ((0, 0), (GAP, GAP), (GAP, GAP)), constant_values=2)
    tile = framed.shape[1]
    sheet = framed.reshape(-1, columns, tile, tile).transpose(0, 2, 1, 3).reshape(-1, columns * tile)
    colours = ListedColormap([GROUND, INK, "white"])
    extent = (0, columns, len(images) // columns, 0)
    axes.imshow(sheet, cmap=colours, vmin=0, vmax=2, extent=extent, interpolation="nearest", aspect="auto")


def _readable(text: str) -> str:
    """What matplotlib's own font can write; tokens themselves are drawn, not written."""
    return "".join(char for char in text if char.isascii()).strip()


def _rows_figure(
    num_rows: int, width: int, cell: float, title: str, report: dict[str, Any], *, margin: float
) -> tuple[Figure, Axes]:
    """Axes for rows of square cells of `cell` inches: a cell is one unit wide and high, rows count downwards."""
    inches = margin + width * cell + 0.2, 0.75 + num_rows * cell + 0.15
    figure = _figure(*inches, title, report, layout=None)
    place = (margin / inches[0], 0.15 / inches[1], width * cell / inches[0], num_rows * cell / inches[1])
    axes = figure.add_axes(place)
    axes.set(xlim=(0, width), ylim=(num_rows, 0))
    axes.axis("off")
    axes.set_autoscale_on(False)
    return figure, axes


def _figure(width: float, height: float, title: str, report: dict[str, Any], layout: Any = "constrained") -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    font = report["recipe"].get("font")
    source = f"{report['kind']}, D={report['hidden_size']}" + (f", {font}" if font else "")
    if layout is None:
        figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=13, color=INK)
    else:
        figure.suptitle(f"{title}\n", fontsize=13, color=INK)  # with an explicit y the layout would leave it no room
    figure.text(0.5, 1 - 0.42 / height, source, ha="center", va="top", fontsize=9, color=GREY)
    return figure
