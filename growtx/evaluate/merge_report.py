"""The merge report: what a merge gained and lost, for a person to read and for a program (`merge.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from growtx.evaluate import formatting as fmt
from growtx.evaluate.intervals import Interval
from growtx.evaluate.merge_figures import scores_by_domain, weights_along_text
from growtx.evaluate.merge_scores import FITTED, Measured, MergeScore, MergeScores
from growtx.evaluate.page import Page, Section, Table, Tile, render
from growtx.evaluate.plot_style import save
from growtx.store.storage import Storage

REPORT_FILE = "report.html"
SCORES_FILE = "merge.json"
UNIT = "bits per byte"


@dataclass(frozen=True)
class Verdict:
    """Whether a merge is better than the best of its members, on the domain that it is judged on.

    Attributes:
        rule: that was chosen, as it is saved (fitted where it learns).
        gain: bits per byte saved against `best_member`, paired over windows; negative: lost.
        best_rule: the best of all that were tried.
        worst: domain of one language on which the chosen rule stands worst against that domain's best member, with
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
            f"{'' if sure else ': within chance'})"
        )
        domain, ratio = self.worst
        if ratio > 0:
            words += f"; on {domain} it is {fmt.percent(ratio)} worse than that text's best member"
        else:
            words += f"; even on {domain}, where it stands worst, it is {fmt.percent(-ratio)} better than any member"
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
) -> str:
    """Write `report.html`, `plots/*.png` and `merge.json` into an ensemble's directory; returns the page's address.

    Args:
        parts: languages of the first mixed document, each with the position that it ends before.
        before: scores of the same members before their heads were tuned.
        facts: what else `merge.json` records (windows, settings).
    """
    storage = Storage(out)
    record = {
        "sentence": verdict.sentence(),
        "gain": verdict.gain._asdict(),
        "rule": verdict.rule,
        "best_rule": verdict.best_rule,
        "scores": [row.model_dump() for row in scores.rows()],
        "notes": scores.notes,
        **(facts or {}),
    }
    page = Page(
        title=f"growtx · {title}",
        headline=verdict.sentence(),
        subtitle=storage.path(""),
        tiles=_tiles(scores, verdict),
        sections=list(_sections(storage, scores, verdict, parts, before)),
        missing=scores.notes,
        command=command,
        config="\n".join(f"{key}: {value}" for key, value in (facts or {}).items()),
    )
    storage.write_text(SCORES_FILE, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    storage.write_text(REPORT_FILE, render(page))
    return storage.path(REPORT_FILE)


def _tiles(scores: MergeScores, verdict: Verdict) -> list[Tile]:
    main = scores.domains[scores.main]
    tiles = [
        Tile(fmt.signed(verdict.gain.value), f"{UNIT} gained over the best member"),
        Tile(fmt.decimal(main.interval(verdict.rule).value), f"{verdict.rule}, {scores.main}"),
        Tile(fmt.decimal(main.interval(verdict.best_member).value), f"{verdict.best_member}, the best member"),
        Tile(fmt.decimal(main.interval(verdict.best_rule).value), f"{verdict.best_rule}, the best rule"),
    ]
    return tiles + [Tile(fmt.decimal(main.interval(name).value), name) for name in scores.names("control")]


def _sections(
    storage: Storage,
    scores: MergeScores,
    verdict: Verdict,
    parts: Sequence[tuple[str, int]],
    before: Sequence[MergeScore],
) -> Iterator[Section]:
    yield Section(
        title="Members and rules on every kind of text",
        lead=f"{UNIT.capitalize()}, lower is better; bars are 95 % intervals over windows. The dashed line is the best "
        "member on that text: points left of it gained. An arrow stands for what lies far to the right.",
        picture=save(partial(scores_by_domain, scores, verdict.rule), storage, "merge_scores"),
        table=_table(scores),
        note="All names read the same windows. Rules were fitted on other held-out documents than these. "
        "An asterisk marks the lowest value of a column.",
    )
    yield Section(
        title="What every rule gains over the best member",
        lead="Paired over windows, so these intervals are narrower than those above: an interval above zero is a gain. "
        "Percent are of the best member's value on that text.",
        table=_gains(scores),
        note="A control is one dense model on the data of all members." if scores.names("control") else "",
    )
    if before:
        yield Section(
            title="What tuning the heads changed",
            lead=f"{UNIT.capitalize()} before and after the members' heads were tuned on the data of all; the windows "
            "are the same ones.",
            table=_changes(scores, before),
        )
    if scores.weights and parts:
        yield Section(
            title="Who speaks when",
            lead="Weights of the members along one document that changes its language; the bar at the top is the "
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
    return Table(["name", "what", *cells], rows, text_columns=(0, 1))


def _gains(scores: MergeScores) -> Table:
    best = {domain: measured.best(scores.names("member")) for domain, measured in scores.domains.items()}
    rows = [
        [name, *(_gain_cell(measured, name, best[domain]) for domain, measured in scores.domains.items())]
        for name in scores.names("rule", "fitted rule", "control")
    ]
    return Table(["rule", *scores.domains], rows)


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


def read_scores(out: str) -> tuple[MergeScore, ...]:
    """The scores that an earlier merge left in its directory; none if there was none."""
    storage = Storage(out)
    if not storage.exists(SCORES_FILE):
        return ()
    return tuple(MergeScore.model_validate(score) for score in json.loads(storage.read_text(SCORES_FILE))["scores"])


def _cell(interval: Interval) -> str:
    return f"{interval.value:.3f} [{fmt.decimal(interval.low)}, {fmt.decimal(interval.high)}]"


def _signed(interval: Interval) -> str:
    return f"{fmt.signed(interval.low)} to {fmt.signed(interval.high)}"
