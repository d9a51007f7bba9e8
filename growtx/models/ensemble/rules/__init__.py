"""The combination rules, one file per method; `build_rule` makes one from its name and options."""

from __future__ import annotations

import inspect
from typing import Any

from growtx.exceptions import ConfigError
from growtx.models.ensemble.rules.adapter import AdapterRule
from growtx.models.ensemble.rules.base import CombinationRule, ProbabilityMixture, TextSoFar
from growtx.models.ensemble.rules.cluster import ClusterRule
from growtx.models.ensemble.rules.contrastive import ContrastiveRule
from growtx.models.ensemble.rules.mean import MeanRule
from growtx.models.ensemble.rules.mixture import MixtureRule
from growtx.models.ensemble.rules.posterior import PosteriorRule
from growtx.models.ensemble.rules.weighted_mean import WeightedMeanRule

RULES: dict[str, type[CombinationRule]] = {
    rule.name: rule
    for rule in (MeanRule, WeightedMeanRule, MixtureRule, PosteriorRule, ClusterRule, ContrastiveRule, AdapterRule)
}

__all__ = [
    "RULES",
    "CombinationRule",
    "ProbabilityMixture",
    "TextSoFar",
    "build_rule",
    "num_history_layers",
    "rule_class",
]


def rule_class(name: str) -> type[CombinationRule]:
    """The class of a rule.

    Raises:
        ConfigError: there is no such rule.
    """
    if name not in RULES:
        raise ConfigError(f"combination rule {name!r} is unknown", f"Use one of {', '.join(RULES)}")
    return RULES[name]


def build_rule(spec: dict[str, Any] | str, *, num_members: int, hidden_size: int, vocab_size: int) -> CombinationRule:
    """A new rule, not fitted, from a name or a spec `{name: ..., option: ...}`.

    Raises:
        ConfigError: unknown rule or option.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    made = rule_class(options.pop("name", "mean"))
    known = set(inspect.signature(made).parameters)
    shape = {"num_members": num_members, "hidden_size": hidden_size, "vocab_size": vocab_size}
    unknown = sorted(set(options) - known - set(shape))
    if unknown:
        settable = sorted(known - set(shape)) or ["none"]
        raise ConfigError(f"rule {made.name} has no option {', '.join(unknown)}", f"Its options: {', '.join(settable)}")
    return made(**{**options, **{key: value for key, value in shape.items() if key in known}})


def num_history_layers(spec: dict[str, Any], num_members: int) -> int:
    """Cache layers that the rule of a spec needs beside those of the blocks."""
    return rule_class(spec["name"]).num_history_layers(num_members)
