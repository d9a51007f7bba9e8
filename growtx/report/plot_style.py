"""One look for every figure: Okabe-Ito colours (safe for colour-blind readers), each drawn for light and for dark.

Figures are built without pyplot, so that nothing global is touched and any process or thread may draw.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from growtx.storage import Storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance. `cycle` is ordered so that neighbours differ in lightness as well as in hue."""

    name: str
    background: str
    foreground: str
    muted: str
    grid: str
    band: str
    cycle: tuple[str, ...]

    @property
    def primary(self) -> str:
        return self.cycle[0]

    @property
    def accent(self) -> str:
        return self.cycle[1]

    @property
    def sequential(self) -> str:
        """Lightness rises evenly and survives grey printing; for values ordered by depth."""
        return "cividis"


LIGHT = Theme(
    name="light",
    background="#ffffff",
    foreground="#1b1f24",
    muted="#5b6570",
    grid="#d9dee3",
    band="#f0f3f6",
    cycle=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
)
DARK = Theme(
    name="dark",
    background="#161a1f",
    foreground="#e8ebee",
    muted="#a3adb8",
    grid="#333a42",
    band="#1f252c",
    cycle=("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#ffffff"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")

Draw = Callable[[Theme], "Figure"]


def new_figure(
    theme: Theme, *, width: float = 9.0, height: float = 4.2, columns: int = 1, panels: int | None = None
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the theme's colours, sizes in inches.

    Args:
        columns: axes side by side.
        panels: number of axes; default: one row of them.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_settings(theme)):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = panels or columns
        axes = figure.subplots(-(-panels // columns), columns, squeeze=False).flatten()
        for unused in axes[panels:]:
            unused.set_axis_off()
    return figure, list(axes[:panels])


def label_axes(axes: Axes, *, x: str, y: str, title: str = "") -> None:
    """Names both axes; the title says what is seen, not what is plotted."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, loc="left")


def save(draw: Draw, storage: Storage, name: str) -> str:
    """Draw the light theme into `plots/NAME.png` (for sharing); returns an HTML picture with both themes."""
    light, dark = _png(draw, LIGHT), _png(draw, DARK)
    storage.write_bytes(f"plots/{name}.png", light)
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}">'
        f'<img src="{_data_uri(light)}" alt="{name.replace("_", " ")}"></picture>'
    )


def _png(draw: Draw, theme: Theme) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_settings(theme)):
        draw(theme).savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _settings(theme: Theme) -> dict[str, object]:
    from cycler import cycler

    return {
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.foreground,
        "axes.titlecolor": theme.foreground,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlepad": 12,
        "axes.labelsize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=theme.cycle),
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "text.color": theme.foreground,
        "legend.frameon": False,
        "legend.fontsize": 10,
        "lines.linewidth": 2.0,
        "lines.markersize": 7,
        "font.size": 10.5,
    }
