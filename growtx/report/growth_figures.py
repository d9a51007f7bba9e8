"""The four figures of a growth run: loss over tokens, bits per byte, parameters, and speed and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from growtx import formatting as fmt
from growtx.report.plot_style import MARKERS, Theme, label_axes, new_figure
from growtx.report.run_record import RunRecord, StageRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_against_tokens(run: RunRecord, theme: Theme) -> Figure:
    """The paper's Figure 1: training loss over all tokens of the run, stages as bands, held-out loss as points."""
    figure, (axes,) = new_figure(theme, height=4.8)
    _shade_stages(axes, run, theme)
    for stage in run.stages:
        tokens, losses = stage.series("train/loss")
        first = stage is run.stages[0]
        axes.plot(tokens, losses, color=theme.primary, alpha=0.25, linewidth=0.9)
        label = "training loss (smoothed; raw values faint)" if first else None
        axes.plot(tokens, smooth(losses), color=theme.primary, label=label)
    _held_out_points(axes, run, theme)
    axes.set_ylim(*loss_limits(run))
    axes.set_xlim(0, run.stages[-1].end_tokens * 1.01 or 1)
    axes.xaxis.set_major_formatter(lambda value, _: fmt.abbreviated(value) if value else "0")
    label_axes(axes, x="tokens seen by the run", y="loss (nats per token)")
    axes.legend(loc="upper right", ncols=3)
    return figure


def bits_per_byte_against_depth(run: RunRecord, theme: Theme) -> Figure:
    """Held-out bits per byte when a stage starts (new blocks untrained) and when it ends."""
    figure, (axes,) = new_figure(theme)
    stages = run.finished_stages
    ends = [(at, value) for at, stage in enumerate(stages) if (value := stage.evaluated("bits_per_byte", "end"))]
    starts = [(at, value) for at, stage in enumerate(stages) if (value := stage.evaluated("bits_per_byte", "start"))]
    if ends:
        axes.plot(*zip(*ends, strict=True), color=theme.primary, marker="o", label="end of stage", zorder=3)
    by_source = [value for stage in stages for value in _by_source(stage)]
    top = max([_start_limit(ends, starts), *by_source])
    shown = [point for point in starts if point[1] <= top]
    if shown:
        axes.plot(*zip(*shown, strict=True), "o", mfc="none", color=theme.accent, mew=2, label="start of stage")
    heights = dict(ends)
    for at, value in shown:
        axes.plot([at, at], [value, heights.get(at, value)], ":", color=theme.accent, linewidth=1.2, zorder=2)
    for at, value in ends:
        axes.annotate(f"{value:.3f}", (at, value), (0, -16), textcoords="offset points", ha="center", zorder=6)
    _sources(axes, stages, theme)
    lowest = min([value for _, value in ends] + by_source, default=0.0)
    if ends:
        axes.set_ylim(lowest - 0.12 * (top - lowest + 0.01), top + 0.06 * (top - lowest + 0.01))
    _stage_ticks(axes, stages)
    label_axes(axes, x="blocks after the stage", y="held-out bits per byte")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # names of sources stand at the right
    return figure


def parameters_against_depth(run: RunRecord, theme: Theme) -> Figure:
    """Active parameters (what needs optimizer state) beside all parameters, with the budget as a line."""
    figure, (axes,) = new_figure(theme)
    stages = run.finished_stages
    positions = np.arange(len(stages))
    total = [manifest.total_parameters for manifest in run.manifests]
    active = [manifest.active_parameters for manifest in run.manifests]
    axes.bar(positions, total, 0.62, color=theme.band, edgecolor=theme.muted, linewidth=1.2, label="all parameters")
    axes.bar(positions, active, 0.62, color=theme.primary, hatch="///", edgecolor=theme.background, label="active")
    for at, (all_of_them, trained) in enumerate(zip(total, active, strict=True)):
        axes.annotate(fmt.abbreviated(all_of_them), (at, all_of_them), (0, 4), textcoords="offset points", ha="center")
        _inside(axes, at, trained, all_of_them, theme)
    if run.budget is not None:
        label = f"budget: {fmt.abbreviated(run.budget)} active"
        axes.axhline(run.budget, color=theme.accent, linestyle="--", label=label, zorder=4)
    axes.set_ylim(0, 1.28 * max([*total, *active, run.budget or 0, 1]))
    axes.yaxis.set_major_formatter(lambda value, _: fmt.abbreviated(value) if value else "0")
    axes.grid(axis="x", visible=False)
    _stage_ticks(axes, stages)
    label_axes(axes, x="blocks after the stage", y="parameters")
    axes.legend(loc="upper left", ncols=3)
    return figure


def speed_and_memory(run: RunRecord, theme: Theme) -> Figure:
    """Tokens per second and the peak memory of a worker, stage by stage."""
    figure, (speed, memory) = new_figure(theme, columns=2, height=3.6)
    stages = run.stages
    positions = np.arange(len(stages))
    rates = [tokens_per_second(stage) or 0.0 for stage in stages]
    peaks = [peak_memory_bytes(stage) or 0.0 for stage in stages]
    for axes, values, say in ((speed, rates, fmt.abbreviated), (memory, peaks, fmt.size)):
        axes.bar(positions, values, 0.62, color=theme.primary if axes is speed else theme.cycle[2])
        axes.set_ylim(0, 1.18 * max([*values, 1e-9]))
        for at, value in enumerate(values):
            text = say(value) if value else "not recorded"
            axes.annotate(text, (at, value), (0, 4), textcoords="offset points", ha="center", fontsize=9.5)
        axes.grid(axis="x", visible=False)
        axes.set_yticks([0])
        _stage_ticks(axes, stages)
    label_axes(speed, x="blocks after the stage", y="", title="Tokens per second (median)")
    label_axes(memory, x="blocks after the stage", y="", title="Peak memory of a worker")
    return figure


def tokens_per_second(stage: StageRecord) -> float | None:
    """The median over the stage's rows: the first rows pay for start-up."""
    _, rates = stage.series("train/tokens_per_second")
    return float(np.median(rates)) if rates else stage.metric("tokens_per_second")


def peak_memory_bytes(stage: StageRecord) -> float | None:
    _, peaks = stage.series("peak_memory_bytes")
    return max(peaks) if peaks else stage.metric("peak_memory_bytes")


def smooth(values: list[float]) -> list[float]:
    """Centred mean over about a twentieth of the stage; the window shrinks at both ends, so nothing is invented."""
    half = max(1, len(values) // 40)
    return [float(np.mean(values[max(0, at - half) : at + half + 1])) for at in range(len(values))]


def loss_limits(run: RunRecord) -> tuple[float, float]:
    """The loss axis from the lowest point to the highest that follows the first steep fall of the run.

    A model starts near ln V; drawn in full, that fall would flatten everything that growth does afterwards.
    """
    shown: list[float] = []
    for stage in run.stages:
        _, losses = stage.series("train/loss")
        shown.extend(losses[len(losses) // 8 :] if stage is run.stages[0] else losses)
        moments = ["end"] if stage is run.stages[0] else ["start", "end"]
        shown.extend(value for when in moments if (value := stage.evaluated("loss", when)) is not None)
    if not shown:
        return 0.0, 1.0
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + 3 * margin


def _shade_stages(axes: Axes, run: RunRecord, theme: Theme) -> None:
    last = run.stages[-1].end_tokens or 1
    for position, stage in enumerate(run.stages):
        start, end = run.stage_start_tokens(stage), stage.end_tokens
        if position % 2:
            axes.axvspan(start, end, color=theme.band, zorder=0)
        if start:
            axes.axvline(start, color=theme.muted, linewidth=0.8, linestyle=":")
        if end - start < 0.03 * last:
            continue  # too narrow for words; the table names it
        depth = f"\n{fmt.plural(stage.num_blocks, 'block')}" if stage.num_blocks is not None else ""
        text = f"stage {stage.index}{depth}" if len(run.stages) <= 8 else f"{stage.index}"
        where: dict[str, Any] = {
            "xycoords": axes.get_xaxis_transform(),
            "xytext": (0, 4),
            "textcoords": "offset points",
        }
        axes.annotate(text, ((start + end) / 2, 1.0), ha="center", va="bottom", color=theme.muted, **where)


def _held_out_points(axes: Axes, run: RunRecord, theme: Theme) -> None:
    labels = {"start": "held-out, start of stage", "end": "held-out, end of stage"}
    for stage in run.stages:
        between = [row for row in stage.rows if row.get("eval/when") == "during" and row.get("eval/loss") is not None]
        axes.plot(
            [row["num_tokens"] for row in between], [row["eval/loss"] for row in between], ".", color=theme.accent
        )
        for when, at in (("start", run.stage_start_tokens(stage)), ("end", stage.end_tokens)):
            value = stage.evaluated("loss", when)
            if value is not None:
                fill = theme.accent if when == "end" else "none"
                ring = 7 if when == "end" else 11  # still seen where a stage starts exactly where the one before ended
                style: dict[str, Any] = {"color": theme.accent, "mfc": fill, "mew": 2, "ms": ring, "zorder": 5}
                axes.plot([at], [value], "o", label=labels.pop(when, None), **style)


def _start_limit(ends: list[tuple[int, float]], starts: list[tuple[int, float]]) -> float:
    """A limit that shows the spikes of growth; the untrained first stage may lie far above it and is then left out."""
    later = [value for at, value in starts if at > 0]
    return max(
        [value for _, value in ends] + later + ([starts[0][1]] if starts and len(ends) == 1 else []), default=1.0
    )


def _by_source(stage: StageRecord) -> list[float]:
    return list(stage.bits_per_byte_by_source.values())


def source_names(stages: list[StageRecord]) -> list[str]:
    """The data sources that bits per byte are split by; none where there is only one."""
    names = sorted({name for stage in stages for name in stage.bits_per_byte_by_source})
    return names if len(names) > 1 else []


def _sources(axes: Axes, stages: list[StageRecord], theme: Theme) -> None:
    """One thin line per data source."""
    for number, name in enumerate(source_names(stages)):
        points = [(at, stage.bits_per_byte_by_source.get(name)) for at, stage in enumerate(stages)]
        known = [(at, value) for at, value in points if value is not None]
        style: dict[str, Any] = {
            "color": theme.cycle[2 + number % 4],
            "marker": MARKERS[1 + number % 6],
            "linewidth": 1.2,
        }
        axes.plot(*zip(*known, strict=True), linestyle="--", markersize=5, **style)
        axes.annotate(name, known[-1], (9, -3), textcoords="offset points", color=style["color"])


def _inside(axes: Axes, at: int, active: int, total: int, theme: Theme) -> None:
    share = f"{fmt.abbreviated(active)} active\n{fmt.percent(active / total, 0)}" if total else fmt.abbreviated(active)
    box = {"facecolor": theme.background, "edgecolor": "none", "pad": 2, "alpha": 0.9}
    axes.text(at, active / 2, share, ha="center", va="center", fontsize=9, bbox=box)


def _stage_ticks(axes: Axes, stages: list[StageRecord]) -> None:
    """Depth on the axis; a stage that adds none (a LoRA phase) is a tick of its own."""
    texts = []
    for stage in stages:
        depth = "?" if stage.num_blocks is None else str(stage.num_blocks)
        texts.append(f"{depth}\n+ LoRA" if stage.has_lora else depth)
    axes.set_xticks(range(len(stages)), texts)
    axes.set_xlim(-0.6, max(len(stages), 2) - 0.4)
