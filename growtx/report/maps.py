"""Drawing the maps: the substrate by what its tokens look like, every layer by what words mean."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from growtx import formatting as fmt
from growtx.evaluate.maps import SITES, LayerMap, Map, Maps, SubstrateMap
from growtx.report.page import Section, Table
from growtx.report.plot_style import MARKERS, Theme, new_figure, save
from growtx.storage import Storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SITE_WORDS = {"v_proj": "v_proj", "o_proj": "o_proj", "block": "block output"}


def map_sections(maps: Maps, storage: Storage) -> Iterator[Section]:
    """Both figures with the numbers of the layers under theirs."""
    best = max(maps.layers, key=lambda layer: layer.same_group)
    yield Section(
        "The substrate",
        "Each dot is a token, placed by its frozen embedding. Tokens lie together because they look alike, not "
        "because of what they mean.",
        save(partial(substrate_figure, maps.substrate), storage, "substrate_map"),
        _kind_table(maps.substrate) if maps.substrate.kinds else None,
        "Share of the five nearest neighbours (cosine, full space) of the same kind.",
        command=maps.command,
    )
    yield Section(
        "Meaning, layer by layer",
        "Each dot is a word, placed by its hidden state at one point of the model; colours are groups of related "
        "meaning, each with words of three languages. "
        f"At best ({SITE_WORDS[best.site]} of layer {best.layer}) {fmt.percent(best.same_group, 0)} of a word's "
        f"nearest neighbours belong to its group; chance is {fmt.percent(best.chance, 0)}.",
        save(partial(layer_figure, maps.layers), storage, "layer_maps"),
        _table(maps.layers),
        "Share of the five nearest neighbours (cosine, full space) in the word's own group. t-SNE shows "
        "neighbourhoods only: distances between clusters and their sizes mean nothing.",
        command=maps.command,
    )


def substrate_figure(substrate: Map, theme: Theme) -> Figure:
    figure, (axes,) = new_figure(theme, height=6.0)
    _scatter(axes, substrate, theme, size=16)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", markerscale=1.6)
    return figure


def layer_figure(layers: tuple[LayerMap, ...], theme: Theme) -> Figure:
    """Rows: v_proj, o_proj, block output. Columns: layers."""
    depths = sorted({layer.layer for layer in layers})
    figure, panels = new_figure(
        theme, columns=len(depths), panels=len(SITES) * len(depths), height=0.9 + 9.0 / max(3, len(depths)) * len(SITES)
    )
    by_place = {(layer.site, layer.layer): layer for layer in layers}
    places = [(site, depth) for site in SITES for depth in depths]
    for axes, (site, depth) in zip(panels, places, strict=True):
        layer = by_place[site, depth]
        _scatter(axes, layer, theme, size=11)
        axes.set_title(f"{SITE_WORDS[site]} {depth}: {fmt.percent(layer.same_group, 0)}", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=7, markerscale=1.6)
    return figure


def _scatter(axes: Axes, points: Map, theme: Theme, *, size: float) -> None:
    for number, label in enumerate(dict.fromkeys(points.labels)):
        members = [point for point, name in zip(points.points, points.labels, strict=True) if name == label]
        axes.scatter(
            [x for x, _ in members],
            [y for _, y in members],
            s=size,
            color=theme.cycle[number % len(theme.cycle)],
            marker=MARKERS[number % len(MARKERS)],
            linewidths=0,
            alpha=0.85,
            label=label,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)


def _kind_table(substrate: SubstrateMap) -> Table:
    rows = [
        [kind.kind, str(kind.num_tokens), fmt.percent(kind.same_kind, 0), fmt.percent(kind.chance, 0)]
        for kind in substrate.kinds
    ]
    return Table(["kind", "tokens", "neighbours of its kind", "chance"], rows)


def _table(layers: tuple[LayerMap, ...]) -> Table:
    depths = sorted({layer.layer for layer in layers})
    by_place = {(layer.site, layer.layer): layer.same_group for layer in layers}
    rows = [[SITE_WORDS[site], *(fmt.percent(by_place[site, depth], 0) for depth in depths)] for site in SITES]
    rows.append(["chance", *[fmt.percent(layers[0].chance, 0)] * len(depths)])
    return Table(["place", *(f"layer {depth}" for depth in depths)], rows)
