"""What merging gains and loses: bits per byte of every member and every rule on every domain, on the same windows.

Shapes: W windows, B batch, T positions, V vocabulary, N members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from growtx.config import ConfigModel
from growtx.evaluate.bits_per_byte import token_nll
from growtx.evaluate.intervals import Interval, bootstrap, bootstrap_ratio
from growtx.exceptions import GrowtxError
from growtx.merge.speed import Speed, decode_speeds
from growtx.merge.text import MergeText, spliced
from growtx.models.ensemble import CombinationRule, GrowtxEnsembleForCausalLM
from growtx.models.ensemble.fitting import fit_rule
from growtx.models.ensemble.rules import ClusterRule, GateRule
from growtx.models.ensemble.scoring import score

Kind = Literal["member", "trunk", "before", "control", "rule", "fitted rule"]
Floats = npt.NDArray[np.float64]
FITTED = "{} (fitted)"
SPLICED_SHARE = 4  # spliced windows for each one as it was, for rules that read the trunk
TRUNK = "trunk"  # the name of what members branch from, where it is measured beside them
BEFORE, OLD_ROUTE = "ensemble before", "old route"  # without the newest member: as it was, and as it is named now
KINDS: dict[str, Kind] = {TRUNK: "trunk", BEFORE: "before", OLD_ROUTE: "before"}


class MergeScore(ConfigModel):
    """Bits per byte of one model or rule on one domain, with its 95 % interval over windows."""

    domain: str
    name: str
    kind: Kind
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """Bits of every window of a domain, by the name of who predicted it, and the bytes of these windows."""

    bits: dict[str, Floats]
    num_bytes: Floats

    def interval(self, name: str) -> Interval:
        return bootstrap_ratio(self.bits[name], self.num_bytes)

    def gain(self, name: str, over: str) -> Interval:
        """Bits per byte that `name` saves against `over`: paired, as both read the same windows."""
        saved = self.bits[over] - self.bits[name]
        return bootstrap(saved.size, lambda counts: (counts @ saved) / (counts @ self.num_bytes))

    def best(self, names: Sequence[str]) -> str:
        return min(names, key=lambda name: float(self.bits[name].sum()))


@dataclass(frozen=True)
class MergeScores:
    """All scores of a merge.

    Attributes:
        kinds: what each name is, in the order of tables.
        domains: measurements by domain, the main one first.
        own: domains of text that each member was grown on.
        weights: member weights [T-1, N] over the first window of the main domain, for each rule that looks at the text.
        notes: rules that were left out, with the reason.
        speeds: of decoding by every rule, and by the best member alone.
    """

    kinds: dict[str, Kind]
    domains: dict[str, Measured]
    main: str
    own: dict[str, list[str]]
    weights: dict[str, Floats]
    notes: list[str]
    speeds: dict[str, Speed] = field(default_factory=dict)

    def names(self, *kinds: Kind) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind in kinds]

    def rows(self) -> list[MergeScore]:
        return [
            MergeScore(
                domain=domain, name=name, kind=self.kinds[name], value=value, low=low or value, high=high or value
            )
            for domain, measured in self.domains.items()
            for name in self.kinds
            for value, low, high in [measured.interval(name)]
        ]


def prepared_rules(
    ensemble: GrowtxEnsembleForCausalLM, text: MergeText, names: Sequence[str], fit: Callable[[CombinationRule], Any]
) -> tuple[dict[str, CombinationRule], list[str]]:
    """Every rule as it is before fitting and, where it has something to learn, after; and notes on those left out."""
    rules: dict[str, CombinationRule] = {}
    notes = []
    for name in names:
        try:
            for label in (name, FITTED.format(name)):
                rule = ensemble.build_rule(name)
                if isinstance(rule, ClusterRule):
                    rule.place_centres(ensemble.embed_tokens, _own_windows(ensemble, text))
                if label != name:
                    if not list(rule.parameters()):
                        continue
                    fit(rule)
                rules[label] = rule.eval()
        except GrowtxError as error:
            notes.append(f"{name}: {error}")
    return rules, notes


def fitting(
    ensemble: GrowtxEnsembleForCausalLM, text: MergeText, *, num_steps: int, batch_size: int, seed: int
) -> Callable[[CombinationRule], list[float]]:
    """Fits a rule on the windows set aside for it, all domains in every batch.

    A rule that reads the trunk also gets windows spliced of them: it has hundreds of numbers to learn, and the few
    mixed documents alone do not teach it what a change of source looks like. A gate's threshold is chosen on a quarter
    that its router does not see.
    """
    windows_WT = torch.cat(list(text.fit.values()))
    generator = torch.Generator().manual_seed(seed)
    windows_WT = windows_WT[torch.randperm(len(windows_WT), generator=generator)]
    is_judged_W = torch.arange(len(windows_WT)) % 4 == 3

    def more(windows_WT: torch.Tensor) -> torch.Tensor:
        more_WT = torch.cat([windows_WT, spliced(windows_WT, SPLICED_SHARE * len(windows_WT), generator)])
        return more_WT[torch.randperm(len(more_WT), generator=generator)]

    def fit(rule: CombinationRule) -> list[float]:
        settings: dict[str, Any] = {"num_steps": num_steps, "batch_size": batch_size}
        if isinstance(rule, GateRule) and is_judged_W.any():
            judged_WT = more(windows_WT[is_judged_W])
            return fit_rule(ensemble, rule, more(windows_WT[~is_judged_W]), judged_WT=judged_WT, **settings)
        return fit_rule(ensemble, rule, more(windows_WT) if rule.reads_trunk else windows_WT, **settings)

    return fit


def _own_windows(ensemble: GrowtxEnsembleForCausalLM, text: MergeText) -> list[torch.Tensor]:
    names = ensemble.config.member_names or []
    if unknown := [name for name in names if not text.groups_of.get(name)]:
        raise GrowtxError(f"there is no text of {', '.join(unknown)} alone to place a centre by", "Leave out --data")
    return [torch.cat([text.fit[group] for group in text.groups_of[name]]) for name in names]


def score_merge(
    ensemble: GrowtxEnsembleForCausalLM,
    text: MergeText,
    rules: Mapping[str, CombinationRule],
    num_bytes_V: npt.NDArray[np.int32],
    *,
    controls: Mapping[str, torch.nn.Module] | None = None,
    batch_size: int = 8,
    notes: Sequence[str] = (),
) -> MergeScores:
    """Run members, rules and controls over every domain."""
    controls = controls or {}
    members = ensemble.config.member_names or []
    kinds: dict[str, Kind] = dict.fromkeys(members, "member")
    kinds |= {name: KINDS.get(name, "control") for name in controls}
    kinds |= {name: "fitted rule" if name.endswith(" (fitted)") else "rule" for name in rules}
    domains: dict[str, Measured] = {}
    weights: dict[str, Floats] = {}
    for domain in (text.main, *(other for other in text.measured if other != text.main)):
        windows_WT = text.measured[domain]
        pieces: dict[str, list[Floats]] = {name: [] for name in kinds}
        for number, ids_BT in enumerate(torch.split(windows_WT, batch_size)):
            scores = score(ensemble, ids_BT, ids_BT, rules)
            found = {**scores.members, **scores.rules}
            found |= {name: token_nll(model, ids_BT, ids_BT) for name, model in controls.items()}
            for name, nll_BT in found.items():
                pieces[name].append(nll_BT.double().sum(1).numpy() / math.log(2))
            if number == 0 and domain == text.main:
                weights = _routing(rules, scores.weights)
        bits = {name: np.concatenate(values) for name, values in pieces.items()}
        domains[domain] = Measured(bits, num_bytes_V[windows_WT[:, 1:].numpy()].sum(1).astype(np.float64))
    own = _pool_own_text(domains, text)
    best = domains[text.main].best(members)
    speeds = decode_speeds(ensemble, best, rules, text.measured[text.main])
    return MergeScores(kinds, domains, text.main, own, weights, list(notes), speeds)


def _routing(rules: Mapping[str, CombinationRule], weights: Mapping[str, torch.Tensor]) -> dict[str, Floats]:
    """Weights over the first window, of rules whose weights change within it."""
    first = {name: weights[name][0].detach().double().numpy() for name in rules}
    return {name: values_TN for name, values_TN in first.items() if np.ptp(values_TN, axis=0).max() > 1e-6}


def _pool_own_text(domains: dict[str, Measured], text: MergeText) -> dict[str, list[str]]:
    """Add a domain for every member that was grown on several groups; returns the domains of each member's text."""
    own: dict[str, list[str]] = {}
    for member, groups in text.groups_of.items():
        own[member] = list(groups)
        if len(groups) > 1:
            parts = [domains[group] for group in groups]
            own[member].append(f"text of {member}")
            domains[f"text of {member}"] = Measured(
                {name: np.concatenate([part.bits[name] for part in parts]) for name in parts[0].bits},
                np.concatenate([part.num_bytes for part in parts]),
            )
    return own
