"""Merging: an ensemble of finished runs, its combination rule fitted, and a report on what is gained and lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, field_validator

from growtx.command import command_line
from growtx.config import ConfigModel
from growtx.data.tokenizer import token_num_bytes
from growtx.evaluate.training_text import read_groups, recorded_data
from growtx.exceptions import ConfigError, DataError, GrowtxError
from growtx.growth.ensembles import (
    EnsembleManifest,
    assemble_ensemble,
    changed_ensemble,
    new_ensemble,
    open_member,
    write_ensemble,
)
from growtx.growth.results import find_result
from growtx.merge.report import Verdict, judge, read_scores, write_merge_report
from growtx.merge.scores import FITTED, MergeScores, fitting, prepared_rules, score_merge
from growtx.merge.text import OwnText, merge_text, own_text
from growtx.models.ensemble import RULES, CombinationRule
from growtx.report.page import Section


class MergeConfig(ConfigModel):
    """How an ensemble combines its members, and what its report compares."""

    rule: str = Field("mean", description="rule of the ensemble; fitted if it has anything to learn")
    rules: tuple[str, ...] = Field(tuple(RULES), description="rules that the report compares")
    fit_windows: int = Field(64, ge=1, description="held-out windows that rules are fitted on")
    fit_steps: int = Field(60, ge=1)
    num_windows: int = Field(64, ge=2, description="other held-out windows of each domain, to measure on")
    max_text_bytes: int = Field(1_000_000, gt=0, description="bytes of held-out text read in each group")
    batch_size: int = Field(8, ge=1)
    require_gain: bool = Field(False, description="refuse a merge that loses to its best member")
    seed: int = Field(0, ge=0)

    @field_validator("rule", "rules")
    @classmethod
    def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            if name not in RULES:
                raise ValueError(f"{name} is not a combination rule; use {', '.join(RULES)}")
        return value

    @property
    def compared(self) -> list[str]:
        """`rules`, the ensemble's own among them."""
        return list(dict.fromkeys([*self.rules, self.rule]))


@dataclass(frozen=True)
class MergeResult:
    """A written ensemble and its report."""

    manifest: EnsembleManifest
    scores: MergeScores
    verdict: Verdict
    report: str


@dataclass(frozen=True)
class Review:
    """What is said to the scores of a merge: sections of its report, and why it is refused, if it is."""

    sections: tuple[Section, ...]
    refusal: GrowtxError | None


def merge(
    manifest: EnsembleManifest,
    out: str,
    config: MergeConfig,
    *,
    texts: Sequence[str] = (),
    controls: Mapping[str, torch.nn.Module] | None = None,
    before: str | None = None,
    title: str = "merge",
    review: Callable[[MergeScores, str], Review] | None = None,
) -> MergeResult:
    """Write an ensemble and its merge report into `out`.

    Args:
        manifest: members, not yet written; see `ensemble_of_paths`.
        texts: files to measure on, one group for each; default: what the members' runs held out.
        controls: other models to measure beside the members; their names may say what they are (`scores.KINDS`).
        before: directory of the merge of these members before their heads were tuned, to compare with.
        review: is asked with the scores and the name of the chosen rule before the report is written.

    Raises:
        GrowtxError: a member cannot be used, there is no text, or the merge loses and `require_gain` is set, or is
            refused by `review`: then the report is written, the ensemble is not.
    """
    ensemble, tokenizer = assemble_ensemble(out, manifest)
    text = merge_text(
        _documents(out, manifest, config, texts),
        tokenizer,
        context_length=ensemble.config.max_position_embeddings,
        num_fit=config.fit_windows,
        num_measured=config.num_windows,
    )
    fit = fitting(ensemble, text, num_steps=config.fit_steps, batch_size=config.batch_size, seed=config.seed)
    torch.manual_seed(config.seed)  # the adapter draws its tensors
    rules, notes = prepared_rules(ensemble, text, config.compared, fit)
    chosen = _chosen(rules, config.rule, notes)
    scores = score_merge(
        ensemble,
        text,
        rules,
        token_num_bytes(tokenizer),
        controls=controls,
        batch_size=config.batch_size,
        notes=notes,
    )
    verdict = judge(scores, config.rule)
    reviewed = review(scores, verdict.rule) if review else Review((), None)
    facts: dict[str, Any] = {
        "members": {member.name: member.digest for member in manifest.members},
        "windows": {domain: len(windows) for domain, windows in text.measured.items()},
        "context_length": ensemble.config.max_position_embeddings,
        "settings": config.model_dump(mode="json"),
    }
    command = command_line()
    report = write_merge_report(
        out,
        scores,
        verdict,
        parts=text.parts,
        before=read_scores(before) if before else (),
        title=title,
        facts=facts,
        command=command,
        first=reviewed.sections,
    )
    if reviewed.refusal:
        raise reviewed.refusal
    if config.require_gain and not verdict.has_gained:
        raise GrowtxError(
            f"{verdict.sentence().rstrip('.')}; the ensemble was not written",
            f"See {report}, choose another rule, or leave require_gain out",
        )
    ensemble.set_rule(chosen)
    return MergeResult(write_ensemble(out, manifest, ensemble), scores, verdict, report)


def ensemble_of_paths(out: str, paths: Sequence[str], *, rule: str, without: Sequence[str] = ()) -> EnsembleManifest:
    """The manifest of an ensemble of the paths that a user gives: runs, manifests, `NAME=PATH`, and ensembles.

    An ensemble, which must come first, stands for its members; a run named like one of them replaces it.

    Raises:
        ConfigError: two members have the same name, or an ensemble does not come first.
    """
    runs: dict[str, str] = {}
    first: str | None = None
    for position, named in enumerate(paths):
        name, separator, path = named.partition("=")
        result = find_result(path if separator else named)
        name, path = name if separator else result.name, result.address
        if result.ensemble is not None and position == 0 and not separator:
            first = path
            continue
        if result.ensemble is not None:
            raise ConfigError(f"{path} is an ensemble, but not the first path", "Name one ensemble, before all runs")
        if name in runs:
            raise ConfigError(f"two members are called {name}", "Name them as NAME=PATH")
        runs[name] = path
    if first is None:
        if without:
            raise ConfigError("--without removes members of an ensemble, but none was given", "Name it before all runs")
        return new_ensemble(out, runs, rule=rule)
    return changed_ensemble(first, out, runs, without=without).model_copy(update={"rule": {"name": rule}})


def _documents(out: str, manifest: EnsembleManifest, config: MergeConfig, texts: Sequence[str]) -> OwnText:
    """The named files, or what the members' runs held out."""
    if texts:
        return OwnText(read_groups(tuple(texts), text_column="text", max_bytes=config.max_text_bytes), {})
    data = {}
    for member in manifest.members:
        run = open_member(out, member)[0].storage.root
        recorded = recorded_data(run)
        if recorded is None:
            raise DataError(f"{run} does not say what text {member.name} was grown on", "Name files with --data")
        data[member.name] = recorded
    return own_text(data, max_bytes=config.max_text_bytes)


def _chosen(rules: Mapping[str, CombinationRule], name: str, notes: Sequence[str]) -> CombinationRule:
    """The rule of the ensemble, as fitted where it learns."""
    if name not in rules:
        usable = ", ".join(rule for rule in rules if rule != FITTED.format(name))
        raise ConfigError(f"the rule {name} cannot be used: {'; '.join(notes)}", f"Use one of {usable}")
    return rules.get(FITTED.format(name), rules[name])
