"""The merge report: what a merge gained and lost, as a page for people and as `merge.json` for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from growtx import formatting as fmt
from growtx.config import parse_record
from growtx.evaluate.intervals import Interval
from growtx.merge.scores import FITTED, OLD_ROUTE, TRUNK, Measured, MergeScore, MergeScores
from growtx.report.page import Page, Section, Table, Tile, render_page
from growtx.report.plot_style import Theme, label_axes, new_figure, save
from growtx.storage import Storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The figures of a merge: what it gained, bits per byte of members and rules by domain, member weights along a document.


KIND_STYLE = {
    "member": (0, "o"),
    "trunk": (4, "P"),
    "before": (5, "v"),
    "control": (6, "D"),
    "rule": (2, "s"),
    "fitted rule": (1, "^"),
}
MOST_SHOWN = 1.6  # times the best member's value; what is worse is not drawn to scale
GAIN_COLOURS = (0, 1, 2, 3)  # of what a merge is held against, in the theme's cycle
SHORTEST_LABEL = 0.04  # share of the axis that a piece needs to be written into
BEST_MEMBER = "the best member"
GATE_KEEPS, GATE_COSTS = 0.95, 1.3  # what a gate is for: of the posterior's gain, times the cost of one member


def compared_with(scores: MergeScores) -> dict[str, dict[str, str]]:
    """What a merge is held against, and who that is in each domain: best member, what was before, controls, trunk."""
    members = scores.names("member")
    found = {BEST_MEMBER: {domain: measured.best(members) for domain, measured in scores.domains.items()}}
    others = [*scores.names("before"), *scores.names("control"), *scores.names("trunk")]
    return found | {name: dict.fromkeys(scores.domains, name) for name in others if name != OLD_ROUTE}


def gains_by_domain(scores: MergeScores, chosen: str, theme: Theme) -> Figure:
    """A row for each domain, in it a bar for each of what the merge is held against: bits per byte that it saves."""
    domains, references = list(scores.domains), compared_with(scores)
    thickness = 0.8 / len(references)
    height = 1.6 + len(domains) * (0.25 + 0.22 * len(references))
    figure, (axes,) = new_figure(theme, width=9, height=height)
    for number, (label, names) in enumerate(references.items()):
        gains = [scores.domains[domain].gain(chosen, names[domain]) for domain in domains]
        rows = np.arange(len(domains)) + (number - (len(references) - 1) / 2) * thickness
        values = np.array([gain.value for gain in gains])
        low, high = (np.array([getattr(gain, end) or gain.value for gain in gains]) - values for end in ("low", "high"))
        colour = theme.cycle[GAIN_COLOURS[number % len(GAIN_COLOURS)]]
        axes.barh(rows, values, 0.9 * thickness, color=colour, label=f"against {label}")
        axes.errorbar(values, rows, xerr=(-low, high), fmt="none", ecolor=theme.foreground, elinewidth=1.1)
    axes.axvline(0, color=theme.foreground, linewidth=1)
    axes.set_yticks(range(len(domains)), domains)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    label_axes(axes, x="bits per byte that the merge saves: right of 0 it is better", y="")
    figure.legend(loc="outside upper left", ncols=len(references), frameon=False)
    return figure


def scores_by_domain(scores: MergeScores, chosen: str, theme: Theme) -> Figure:
    """A panel for each domain, a row for each member and rule, the best member as a line."""
    names = list(scores.kinds)[::-1]
    domains = list(scores.domains)
    columns = min(4, len(domains))
    rows = -(-len(domains) // columns)
    height = 0.9 + rows * (0.9 + 0.27 * len(names))
    figure, panels = new_figure(theme, width=11, columns=columns, panels=len(domains), height=height)
    for number, (axes, domain) in enumerate(zip(panels, domains, strict=True)):
        _panel(axes, scores, domain, names, theme)
        labels = names if number % columns == 0 else [""] * len(names)
        axes.set_yticks(range(len(names)), labels)
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color(theme.foreground)
            label.set_fontweight("bold" if name == chosen else "normal")
    figure.supxlabel("bits per byte, lower is better (bold: the rule of this ensemble)", fontsize=10.5)
    return figure


def _panel(axes: Axes, scores: MergeScores, domain: str, names: Sequence[str], theme: Theme) -> None:
    measured = scores.domains[domain]
    intervals = {name: measured.interval(name) for name in names}
    for row, name in enumerate(names):
        value, low, high = intervals[name]
        colour, marker = KIND_STYLE[scores.kinds[name]]
        axes.hlines(row, low or value, high or value, color=theme.cycle[colour], linewidth=1.6)
        axes.plot(value, row, marker, color=theme.cycle[colour], markersize=6)
    best = measured.best(scores.names("member"))
    axes.axvline(intervals[best].value, color=theme.muted, linestyle="--", linewidth=1.2, zorder=1)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.locator_params(axis="x", nbins=4)
    # A member that cannot read a script, or a badly fitted rule, would squeeze all others: cut off, marked by an arrow.
    right = MOST_SHOWN * intervals[best].value
    shown = [(i.low or i.value, i.high or i.value) for i in intervals.values() if i.value <= right]
    left, right = min(low for low, _ in shown), max(high for _, high in shown)
    margin = 0.08 * (right - left) or 0.01
    axes.set_xlim(left - margin, right + margin)
    for row, name in enumerate(names):
        if intervals[name].value > right + margin:
            label = f"{intervals[name].value:.2f} →"
            axes.annotate(label, (right + margin, row), ha="right", va="center", fontsize=8.5, color=theme.muted)
    label_axes(axes, x="", y="", title=domain)
    axes.title.set_fontsize(10.5)


def weights_along_text(scores: MergeScores, parts: Sequence[tuple[str, int]], theme: Theme) -> Figure:
    """A strip for each rule: the members' weights at each token; above them, the language of the text."""
    strips = list(scores.weights.items())
    members = scores.names("member")
    figure, panels = new_figure(theme, width=10, height=1.3 + 0.75 * len(strips), panels=len(strips) + 1)
    num_positions = len(strips[0][1])
    _languages(panels[0], parts, num_positions, theme)
    for axes, (name, weights_TN) in zip(panels[1:], strips, strict=True):
        edges_TN = np.concatenate([np.zeros((num_positions, 1)), weights_TN.cumsum(1)], axis=1)
        positions = np.arange(num_positions)
        for number, member in enumerate(members):
            lower, upper = edges_TN[:, number], edges_TN[:, number + 1]
            colour = theme.cycle[number % len(theme.cycle)]
            axes.fill_between(positions, lower, upper, step="mid", color=colour, linewidth=0, label=member)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center")
    for axes in panels:
        axes.set_xlim(-0.5, num_positions - 0.5)
        axes.grid(visible=False)
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("token of the document")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), title="member")
    return figure


def _languages(axes: Axes, parts: Sequence[tuple[str, int]], num_positions: int, theme: Theme) -> None:
    start = 0
    for number, (name, ends_before) in enumerate(parts):
        end = min(ends_before, num_positions)
        shade = theme.band if number % 2 == 0 else theme.grid
        axes.axvspan(start - 0.5, end - 0.5, color=shade, linewidth=0)
        if end - start > SHORTEST_LABEL * num_positions:
            axes.text((start + end) / 2, 0.5, name, ha="center", va="center")
        start = end
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel("text", rotation=0, ha="right", va="center")


MERGE_REPORT_FILE = "report.html"
SCORES_FILE = "merge.json"
UNIT = "bits per byte"


@dataclass(frozen=True)
class Verdict:
    """Whether a merge is better than the best of its members, on the domain that it is judged on.

    Attributes:
        rule: the chosen one, as it is saved (fitted if it learns).
        gain: bits per byte saved against `best_member`, paired over windows; negative: lost.
        best_rule: the best of all that were tried.
        worst: the single-language domain where the chosen rule does worst against that domain's best member, with
            the ratio of their bits per byte minus one.
    """

    rule: str
    domain: str
    best_member: str
    gain: Interval
    best_rule: str
    best_gain: Interval
    worst: tuple[str, float]

    @property
    def has_gained(self) -> bool:
        return self.gain.value > 0

    def sentence(self) -> str:
        """In plain words."""
        verb = "gains" if self.has_gained else "loses"
        sure = (self.gain.low or 0) > 0 or (self.gain.high or 0) < 0
        words = (
            f"On {self.domain} the merge by {self.rule} {verb} {abs(self.gain.value):.3f} {UNIT} against its best "
            f"member, {self.best_member} (95 % interval of the gain {_signed(self.gain)}"
            f"{'' if sure else ', so not significant'})"
        )
        domain, ratio = self.worst
        if ratio > 0:
            words += f"; on {domain} it is {fmt.percent(ratio)} worse than the best member on that text"
        else:
            words += f"; even on {domain}, where it does worst, it is {fmt.percent(-ratio)} better than any member"
        if self.best_rule != self.rule:
            words += f". The best rule tried is {self.best_rule}, with a gain of {fmt.signed(self.best_gain.value)}"
        return words + "."


def judge(scores: MergeScores, rule: str) -> Verdict:
    """Compare a rule with the best member.

    Args:
        rule: name of a rule; where it was fitted, that is what is judged.
    """
    chosen = FITTED.format(rule) if FITTED.format(rule) in scores.kinds else rule
    members, rules = scores.names("member"), scores.names("rule", "fitted rule")
    main = scores.domains[scores.main]
    best_member, best_rule = main.best(members), main.best(rules)
    against = {
        domain: measured.interval(chosen).value / measured.interval(measured.best(members)).value - 1
        for domain, measured in scores.domains.items()
        if domain != scores.main or len(scores.domains) == 1
    }
    worst = max(against, key=lambda domain: against[domain])
    return Verdict(
        rule=chosen,
        domain=scores.main,
        best_member=best_member,
        gain=main.gain(chosen, best_member),
        best_rule=best_rule,
        best_gain=main.gain(best_rule, best_member),
        worst=(worst, against[worst]),
    )


def write_merge_report(
    out: str,
    scores: MergeScores,
    verdict: Verdict,
    *,
    parts: Sequence[tuple[str, int]] = (),
    before: Sequence[MergeScore] = (),
    title: str = "merge",
    facts: Mapping[str, Any] | None = None,
    command: str = "",
    first: Sequence[Section] = (),
) -> str:
    """Write `report.html`, `plots/*.png` and `merge.json` into an ensemble's directory; returns the page's address.

    Args:
        parts: languages of the first mixed document, each with the position that it ends before.
        before: scores of the same members before their heads were tuned.
        facts: what else `merge.json` records (windows, settings).
        first: sections above all others.
    """
    storage = Storage(out)
    record = {
        "sentence": verdict.sentence(),
        "gain": verdict.gain._asdict(),
        "rule": verdict.rule,
        "best_rule": verdict.best_rule,
        "scores": [row.model_dump() for row in scores.rows()],
        "speeds": {name: speed.model_dump() for name, speed in scores.speeds.items()},
        "notes": scores.notes,
        **(facts or {}),
    }
    page = Page(
        title=f"growtx · {title}",
        headline=verdict.sentence(),
        subtitle=storage.path(""),
        tiles=_tiles(scores, verdict),
        sections=[*first, *_sections(storage, scores, verdict, parts, before)],
        missing=scores.notes,
        command=command,
        config="\n".join(f"{key}: {value}" for key, value in (facts or {}).items()),
    )
    storage.write_text(SCORES_FILE, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    storage.write_text(MERGE_REPORT_FILE, render_page(page))
    return storage.path(MERGE_REPORT_FILE)


def _tiles(scores: MergeScores, verdict: Verdict) -> list[Tile]:
    main = scores.domains[scores.main]
    tiles = [
        Tile(fmt.signed(verdict.gain.value), f"{UNIT} gained over the best member"),
        Tile(fmt.decimal(main.interval(verdict.rule).value), f"{verdict.rule}, {scores.main}"),
        Tile(fmt.decimal(main.interval(verdict.best_member).value), f"{verdict.best_member}, the best member"),
        Tile(fmt.decimal(main.interval(verdict.best_rule).value), f"{verdict.best_rule}, the best rule"),
    ]
    others = list(compared_with(scores))[1:]
    return tiles + [Tile(fmt.decimal(main.interval(name).value), name) for name in others]


def _sections(
    storage: Storage,
    scores: MergeScores,
    verdict: Verdict,
    parts: Sequence[tuple[str, int]],
    before: Sequence[MergeScore],
) -> Iterator[Section]:
    yield Section(
        title="What the merge gained",
        lead=f"{UNIT.capitalize()} that the merge by {verdict.rule} saves against the best member on each text"
        + "".join(f", against the {name}" for name in list(compared_with(scores))[1:])
        + ". A bar to the right is a gain, one to the left a loss; lines are 95 % intervals, paired over windows.",
        picture=save(partial(gains_by_domain, scores, verdict.rule), storage, "merge_gains"),
        table=_gained(scores, verdict.rule),
        note="The control is one dense model on the data of all members." if scores.names("control") else "",
    )
    if scores.names("trunk"):
        yield Section(
            title="What the trunk gave, and what the branches",
            lead=f"{UNIT.capitalize()}, lower is better. The trunk is what all members branch from, measured with its "
            "own head; the best branch is the best member on that text. Gains are over the trunk.",
            table=_branches(scores, verdict.rule),
        )
    yield Section(
        title="Members and rules on every kind of text",
        lead=f"{UNIT.capitalize()}, lower is better; bars are 95 % intervals over windows. The dashed line is the best "
        "member on that text: points left of it are gains. An arrow marks a value far to the right.",
        picture=save(partial(scores_by_domain, scores, verdict.rule), storage, "merge_scores"),
        table=_table(scores),
        note="All were measured on the same windows. Rules were fitted on different held-out documents. "
        "An asterisk marks the lowest value of a column.",
    )
    yield Section(
        title="What every rule gains over the best member",
        lead="Paired over windows, so these intervals are narrower than those above: an interval above zero is a gain. "
        "Percentages are relative to the best member's value on that text.",
        table=_gains(scores),
    )
    if scores.speeds:
        yield Section(
            title="What every rule costs",
            lead="Tokens a second where one text is continued token by token on the machine that merged, beside the "
            f"best member alone; and the share of the posterior's gain on {scores.main} that a rule keeps. "
            f"{_gate_sentence(scores)}",
            table=_costs(scores),
            note="Others ran: tokens at which more than one member was combined. Branches a token: how many read it "
            "sooner or later, as a gate's members catch up in chunks. The endpoint, which computes many texts in one "
            "step, runs all members at every token, whatever the rule.",
        )
    if before:
        yield Section(
            title="What tuning the heads changed",
            lead=f"{UNIT.capitalize()} before and after the members' heads were tuned on the data of all members; "
            "the windows are the same.",
            table=_changes(scores, before),
        )
    if scores.weights and parts:
        yield Section(
            title="Member weights along a document",
            lead="Weights of the members along one document that switches language; the bar at the top is the "
            "language of the text itself.",
            picture=save(partial(weights_along_text, scores, parts), storage, "merge_weights"),
            table=_weight_table(scores, parts),
            note="Means over the pieces of the document. Rules with the same weights everywhere are not drawn.",
        )


def _table(scores: MergeScores) -> Table:
    cells = dict(scores.domains)
    lowest = {domain: measured.best(list(scores.kinds)) for domain, measured in cells.items()}
    rows = [
        [
            name,
            kind,
            *(
                _cell(measured.interval(name)) + ("*" if lowest[domain] == name else "")
                for domain, measured in cells.items()
            ),
        ]
        for name, kind in scores.kinds.items()
    ]
    return Table(["name", "kind", *cells], rows, text_columns=(0, 1))


def _gains(scores: MergeScores) -> Table:
    best = {domain: measured.best(scores.names("member")) for domain, measured in scores.domains.items()}
    rows = [
        [name, *(_gain_cell(measured, name, best[domain]) for domain, measured in scores.domains.items())]
        for name in scores.names("rule", "fitted rule", "control", "trunk", "before")
    ]
    return Table(["rule", *scores.domains], rows)


def _gained(scores: MergeScores, chosen: str) -> Table:
    """What the chosen rule gains in each domain, against everything that it is held against."""
    references = compared_with(scores)
    rows = [
        [domain, *(_gain_cell(measured, chosen, names[domain]) for names in references.values())]
        for domain, measured in scores.domains.items()
    ]
    return Table(["text", *(f"against {label}" for label in references)], rows)


def kept_gain(scores: MergeScores, rule: str) -> float | None:
    """The share of the posterior's gain over the best member that a rule keeps; None: there is none to keep."""
    main = scores.domains[scores.main]
    posterior = next((name for name in (FITTED.format("posterior"), "posterior") if name in scores.kinds), None)
    if posterior is None:
        return None
    best = main.best(scores.names("member"))
    wanted = main.gain(posterior, best).value
    return main.gain(rule, best).value / wanted if wanted > 0 else None


def _relative_cost(scores: MergeScores, name: str) -> float:
    """Time of a token relative to the best member alone."""
    best = scores.domains[scores.main].best(scores.names("member"))
    return scores.speeds[best].tokens_per_second / scores.speeds[name].tokens_per_second


def _costs(scores: MergeScores) -> Table:
    main, rows = scores.domains[scores.main], []
    for name, speed in scores.speeds.items():
        kept = kept_gain(scores, name)
        rows.append(
            [
                name,
                f"{main.interval(name).value:.3f}",
                fmt.MISSING if kept is None else fmt.percent(kept),
                f"{speed.tokens_per_second:.0f}",
                f"{_relative_cost(scores, name):.2f}",
                fmt.percent(speed.share_opened),
                f"{speed.branches_per_token:.2f}",
            ]
        )
    of_members = ["times one member", "others ran", "branches a token"]
    return Table(["rule", UNIT, "kept of the gain", "tokens a second", *of_members], rows)


def _gate_sentence(scores: MergeScores) -> str:
    """Whether the gate does what it is for: 95 % of the gain at 1.3 times the cost of one member."""
    gate = FITTED.format("gate")
    kept = kept_gain(scores, gate) if gate in scores.speeds else None
    if kept is None:
        return ""
    cost = _relative_cost(scores, gate)
    reached = kept >= GATE_KEEPS and cost <= GATE_COSTS
    return (
        f"The gate keeps {fmt.percent(kept)} of it at {cost:.2f} times the cost of one member, with others at "
        f"{fmt.percent(scores.speeds[gate].share_opened)} of the tokens: its goal, {fmt.percent(GATE_KEEPS, 0)} at no "
        f"more than {GATE_COSTS} times, is {'reached' if reached else 'not reached'}."
    )


def _branches(scores: MergeScores, chosen: str) -> Table:
    """The trunk alone, the best branch and the merge, with what each of these gains over the trunk."""
    rows = []
    for domain, measured in scores.domains.items():
        best = measured.best(scores.names("member"))
        cells = [f"{measured.interval(name).value:.3f}" for name in (TRUNK, best, chosen)]
        gains = [_gain_cell(measured, name, TRUNK) for name in (best, chosen)]
        rows.append([domain, cells[0], best, cells[1], gains[0], cells[2], gains[1]])
    columns = ["text", "trunk alone", "best branch", "its value", "gain of the branch", "merge", "gain of the merge"]
    return Table(columns, rows, text_columns=(0, 2))


def _gain_cell(measured: Measured, name: str, best: str) -> str:
    """Absolute, in percent of the best member's value, and the interval."""
    gain = measured.gain(name, best)
    share = gain.value / measured.interval(best).value
    return f"{fmt.signed(gain.value)} ({fmt.signed(100 * share, 1)}{fmt.NBSP}%) [{_signed(gain)}]"


def _weight_table(scores: MergeScores, parts: Sequence[tuple[str, int]]) -> Table:
    """The mean weight of each member in each piece of the document."""
    members = scores.names("member")
    rows = []
    for rule, weights_TN in scores.weights.items():
        start = 0
        for piece, ends_before in parts:
            if len(weights_TN[start:ends_before]):
                means = weights_TN[start:ends_before].mean(axis=0)
                rows.append([rule, piece, *(fmt.percent(float(mean), 0) for mean in means)])
            start = ends_before
    return Table(["rule", "piece of the text", *members], rows, text_columns=(0, 1))


def _changes(scores: MergeScores, before: Sequence[MergeScore]) -> Table:
    """Values before and after, of the names and domains that both merges have."""
    old = {(score.domain, score.name): score.value for score in before}
    domains = [domain for domain in scores.domains if any(known == domain for known, _ in old)]
    rows = []
    for name in scores.names("member", "rule", "fitted rule"):
        pairs = [(old.get((domain, name)), scores.domains[domain].interval(name).value) for domain in domains]
        if any(first is not None for first, _ in pairs):
            rows.append([name, *(_change_cell(first, second) for first, second in pairs)])
    return Table(["name", *domains], rows)


def _change_cell(before: float | None, after: float) -> str:
    if before is None:
        return fmt.MISSING
    return f"{fmt.decimal(before)} → {fmt.decimal(after)} ({fmt.signed(100 * (after / before - 1), 1)}{fmt.NBSP}%)"


class _Scores(BaseModel):
    scores: tuple[MergeScore, ...]


def read_scores(out: str) -> tuple[MergeScore, ...]:
    """The scores that an earlier merge left in its directory; none if there was none."""
    storage = Storage(out)
    if not storage.exists(SCORES_FILE):
        return ()
    data = storage.read_bytes(SCORES_FILE)
    return parse_record(_Scores, data, storage.path(SCORES_FILE), "Delete it and merge again").scores


def _cell(interval: Interval) -> str:
    return f"{interval.value:.3f} [{fmt.decimal(interval.low)}, {fmt.decimal(interval.high)}]"


def _signed(interval: Interval) -> str:
    return f"{fmt.signed(interval.low)} to {fmt.signed(interval.high)}"
