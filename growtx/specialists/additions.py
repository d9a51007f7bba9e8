"""A language or domain added to what is in service: a branch, its routing, and a receipt that nothing old was lost.

RUN/specialists/NAME/        the branch, a run directory like the others
RUN/added/NN-NAME/           the ensemble with it: ensemble.json, its merge report, and receipt.json, written last

Each receipt names the one before by its hash, the first one the ensemble that the specialists were merged into. The
newest is what is in service. Nothing that was there before is written to, so an addition is removed by dropping files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console

from growtx.config import ConfigModel, apply_overrides, build_config, parse_record
from growtx.exceptions import ConfigError, GrowtxError, StoreError
from growtx.formatting import percent, signed
from growtx.growth.ensembles import (
    ENSEMBLE_FILE,
    EnsembleManifest,
    assemble_ensemble,
    changed_ensemble,
    load_ensemble,
    read_ensemble,
)
from growtx.growth.results import find_result
from growtx.merge.driver import MergeConfig, Review, merge
from growtx.merge.scores import BEFORE, OLD_ROUTE, MergeScores
from growtx.models.ensemble import GrowtxEnsembleForCausalLM
from growtx.report.page import Section, Table
from growtx.run.config import RunConfig
from growtx.run.directory import RunStatus, recorded_config
from growtx.run.pool import TrainTask
from growtx.run.prepare import cache_dir, preparing
from growtx.specialists.config import TRUNK_RUN, SpecialistConfig, SpecialistsConfig, reads_the_same
from growtx.specialists.driver import (
    ENSEMBLE_DIR,
    SPECIALISTS_DIR,
    TUNED_DIR,
    conclude,
    manifest_path,
    prepare_member,
    train,
)
from growtx.storage import Storage, resolve_address
from growtx.store.manifest import Hash
from growtx.store.run_lock import acquire, fenced
from growtx.store.run_records import RUN_FILE
from growtx.train.cluster import check_cluster, connected
from growtx.train.job import TrainJob

ADDED_DIR = "added"
RECEIPT_FILE = "receipt.json"


class OldSource(ConfigModel):
    """Bits per byte of a source that was there before.

    Attributes:
        old_route: by the members and the rule of before, as the new ensemble names them.
        is_identical: whether that is what it was, in every window and to the last bit.
        routed: by the new ensemble; `regression`: how much worse that is, as a share.
    """

    source: str
    before: float
    old_route: float
    is_identical: bool
    routed: float
    regression: float


class NewSource(ConfigModel):
    """Bits per byte of a source that only the new member has read.

    Attributes:
        alone: by the new member itself.
        kept: share of its gain over what was there before that the new ensemble has, too; None: it gains nothing.
    """

    source: str
    before: float
    alone: float
    routed: float
    kept: float | None


class Receipt(ConfigModel):
    """What an addition changed, and what it did not."""

    format_version: int = 1
    name: str
    parent: Hash = Field(
        description="sha256 of the receipt before; of the first one: of the specialists' ensemble.json"
    )
    ensemble: Hash = Field(description="sha256 of the ensemble.json beside it")
    rule: str
    max_regression: float
    old: tuple[OldSource, ...]
    new: tuple[NewSource, ...]
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Addition:
    """A link of the chain: a directory below RUN/added and what lies in it."""

    place: Storage
    receipt: Receipt
    digest: str

    @property
    def number(self) -> int:
        return int(self.place.root.rpartition("/")[2].partition("-")[0])


@dataclass(frozen=True)
class AddResult:
    """What `add` leaves; without a receipt it was stopped, and --resume goes on."""

    run_dir: str
    stopped: bool
    receipt: Receipt | None = None
    ensemble: str = ""
    report: str = ""


def read_additions(run: Storage) -> list[Addition]:
    """The chain of receipts, oldest first.

    Raises:
        StoreError: one is damaged, or is not about what lies beside it.
    """
    chain: list[Addition] = []
    for name in run.list_names(ADDED_DIR):
        place = run.child(f"{ADDED_DIR}/{name}")
        if not place.exists(RECEIPT_FILE):
            continue  # of an addition that did not come to its end, or was removed
        data = place.read_bytes(RECEIPT_FILE)
        where = place.path(RECEIPT_FILE)
        receipt = parse_record(Receipt, data, where, "Restore it from a copy, or add the member again")
        before = chain[-1].digest if chain else _digest(_merged(run), ENSEMBLE_FILE)
        for what, expected, found in (
            ("what was in service before it", receipt.parent, before),
            (place.path(ENSEMBLE_FILE), receipt.ensemble, _digest(place, ENSEMBLE_FILE)),
        ):
            if expected != found:
                raise StoreError(
                    f"{where} is not about {what} (sha256 {found[:12]}, expected {expected[:12]})",
                    "Restore both from a copy",
                )
        chain.append(Addition(place, receipt, hashlib.sha256(data).hexdigest()))
    return chain


def in_service(run: Storage) -> Storage:
    """The directory of the newest ensemble."""
    chain = read_additions(run)
    return chain[-1].place if chain else _merged(run)


def receipt_sentences(receipt: Receipt) -> list[str]:
    """A receipt in words, a sentence for each source."""
    sentences = []
    for old in receipt.old:
        change = f"{percent(abs(old.regression), 2)} {'worse' if old.regression > 0 else 'better'}"
        same = "identical bits on the old route" if old.is_identical else "OTHER bits on the old route"
        sentences.append(
            f"{old.source}: {same}; as routed {old.before:.4f} to {old.routed:.4f} bits per byte, {change}"
        )
    for new in receipt.new:
        share = (
            "a lone specialist gains nothing"
            if new.kept is None
            else f"{percent(new.kept)} of a lone specialist's gain"
        )
        sentences.append(f"{new.source}: {new.before:.4f} to {new.routed:.4f} bits per byte, {share} ({new.alone:.4f})")
    return sentences


def add_member(
    run_dir: str,
    name: str,
    overrides: Sequence[str],
    *,
    resume: bool = False,
    rule: str | None = None,
    max_regression: float = 0.005,
    console: Console | None = None,
) -> AddResult:
    """Grow a branch on new text, fit the routing, and write the ensemble with its receipt.

    Args:
        overrides: of a specialist (`data`, `plan`, `resources`, `seed`), whose plan is the shared one if it has none.
        rule: of the new ensemble; None: that of the one before.
        max_regression: how much worse the new ensemble may be on any old source, as a share.

    Raises:
        GrowtxError: in one sentence; what is in service is as it was.
    """
    console = console or Console()
    if not math.isfinite(max_regression):
        raise ConfigError(f"--max-regression {max_regression} is no share", "Give a number such as 0.005")
    run, config = _open(run_dir)
    current = in_service(run)
    found = read_ensemble(current.root)
    settings = {**config.merge.model_dump(), "rule": rule or found.rule["name"], "require_gain": False}
    config = config.model_copy(update={"merge": build_config(MergeConfig, settings)})
    if name in found.names:
        raise ConfigError(f"{run.root} has a member {name} already", "Choose another name, or remove it first")
    member = _member_config(run, config, name, overrides, resume=resume)
    status = RunStatus(run.child(f"{SPECIALISTS_DIR}/{name}"))
    with connected(member.resources, claim=False):
        check_cluster(member.resources)
        with preparing(console):
            job = _prepared(member, run)
        tasks = [TrainTask(name, (job,))]
        result = train(tasks, config, status, console)
    conclude(tasks, result, f"What is in service is as it was; growtx add {run.root} {name} --resume goes on")
    if status.is_stopped:
        return AddResult(run.root, stopped=True)
    path = manifest_path(job)
    return _merge(run, config, current=current, name=name, path=path, max_regression=max_regression)


def remove_member(run_dir: str, name: str) -> str:
    """Drop the newest addition; returns the directory of what is in service then.

    Its branch stays in RUN/specialists/NAME, so that adding it again trains nothing.

    Raises:
        ConfigError: it was never added, or others were added after it.
    """
    run, _ = _open(run_dir)
    chain = read_additions(run)
    names = [addition.receipt.name for addition in chain]
    if name not in names:
        added = f"Added were {', '.join(names)}" if names else "Nothing was added to it"
        raise ConfigError(f"{run.root} has no addition called {name}", added)
    if name != names[-1]:
        raise ConfigError(
            f"{names[-1]} was added after {name}, and its receipt is about both",
            f"Remove {names[-1]} first, or write an ensemble of its own: growtx merge {chain[-1].place.root} "
            f"--without {name} --out DIR",
        )
    for file in (RECEIPT_FILE, ENSEMBLE_FILE):  # the receipt makes it part of the chain
        chain[-1].place.remove(file)
    return in_service(run).root


def _open(run_dir: str) -> tuple[Storage, SpecialistsConfig]:
    """A run of specialists, locked for this process, and its configuration."""
    result = find_result(run_dir)
    storage = Storage(resolve_address(run_dir))
    if result.kind != "group":
        raise ConfigError(f"{run_dir} is no run of `growtx specialists`", "Name the directory that such a run has made")
    acquire(storage)
    run = fenced(storage)
    config = recorded_config(run, SpecialistsConfig)
    return run, config.model_copy(update={"cache_dir": cache_dir(config, run)})


def _merged(run: Storage) -> Storage:
    """The ensemble that the specialists were merged into, with tuned heads where they were."""
    for name in (TUNED_DIR, ENSEMBLE_DIR):
        if run.exists(f"{name}/{ENSEMBLE_FILE}"):
            return run.child(name)
    raise ConfigError(f"{run.root} has no ensemble yet", f"Finish it: growtx specialists --resume --run-dir {run.root}")


def _member_config(
    run: Storage, config: SpecialistsConfig, name: str, overrides: Sequence[str], *, resume: bool
) -> RunConfig:
    """The new branch as a run; without overrides a resumed one is what it was."""
    place = run.child(f"{SPECIALISTS_DIR}/{name}")
    if place.exists(RUN_FILE) and not resume:
        raise ConfigError(f"{place.root} already holds a run", "Add --resume to go on with it, or choose another name")
    trunk = run.child(TRUNK_RUN).root if config.trunk else None
    if resume and not overrides:
        if not place.exists(RUN_FILE):
            raise ConfigError(f"--resume: {place.root} holds no run", "Say what to grow: data.sources='[{files: ...}]'")
        return recorded_config(place).model_copy(update={"parent": trunk or config.parent})
    tree = apply_overrides({"name": name, "plan": config.plan.model_dump(mode="json")}, list(overrides))
    specialist = build_config(SpecialistConfig, tree)
    # As one of the specialists: whatever is asked of these is asked of it.
    together = config.model_copy(update={"specialists": (*config.specialists, specialist)})
    build_config(SpecialistsConfig, together.model_dump(mode="json"))
    known = [source for other in config.specialists for source in other.data.sources]
    if all(any(reads_the_same(source, other) for other in known) for source in specialist.data.sources):
        raise _nothing_new(name)
    return together.run_config(specialist, trunk=trunk)


def _prepared(member: RunConfig, run: Storage) -> TrainJob:
    """The branch's job. Where it cannot be prepared for the first time, its directory is free for another one."""
    place = run.child(f"{SPECIALISTS_DIR}/{member.name}")
    is_new = not place.exists(RUN_FILE)
    try:
        return prepare_member(member, run, run.child("shared")).job
    except GrowtxError:
        if is_new and place.exists(RUN_FILE):
            place.remove(RUN_FILE)
        raise


def _merge(
    run: Storage,
    config: SpecialistsConfig,
    *,
    current: Storage,
    name: str,
    path: str,
    max_regression: float,
) -> AddResult:
    """The ensemble with the new member, its report, and last its receipt."""
    chain = read_additions(run)
    place = run.child(f"{ADDED_DIR}/{chain[-1].number + 1 if chain else 1:02d}-{name}")
    before, _ = load_ensemble(current.root)
    manifest = changed_ensemble(current.root, place.root, {name: path})
    receipts: list[dict[str, Any]] = []

    def review(scores: MergeScores, chosen: str) -> Review:
        old, new = _measured(scores, chosen, name)
        receipts.append({"rule": chosen, "old": old, "new": new})
        return Review((_section(old, new),), _refusal(name, old, max_regression))

    merged = merge(
        manifest.model_copy(update={"rule": {"name": config.merge.rule}}),
        place.root,
        config.merge,
        controls={BEFORE: before, OLD_ROUTE: _old_route(place.root, manifest, name, before)},
        title=f"{config.name} with {name}",
        review=review,
    )
    receipt = Receipt(
        name=name,
        parent=chain[-1].digest if chain else _digest(current, ENSEMBLE_FILE),
        ensemble=_digest(place, ENSEMBLE_FILE),
        max_regression=max_regression,
        **receipts[-1],
    )
    place.write_text(RECEIPT_FILE, receipt.model_dump_json(indent=1) + "\n")
    return AddResult(run.root, stopped=False, receipt=receipt, ensemble=place.root, report=merged.report)


def _old_route(
    root: str, manifest: EnsembleManifest, name: str, before: GrowtxEnsembleForCausalLM
) -> GrowtxEnsembleForCausalLM:
    """The members of before as the new manifest names them, under the rule of before."""
    members = tuple(member for member in manifest.members if member.name != name)
    route, _ = assemble_ensemble(root, manifest.model_copy(update={"members": members, "rule": before.rule.spec()}))
    route.rule.load_state_dict(before.rule.state_dict())
    route.eval()
    return route


def _measured(scores: MergeScores, chosen: str, name: str) -> tuple[list[OldSource], list[NewSource]]:
    """Every source that old members have read, and those that only the new one has.

    Raises:
        ConfigError: the new member has read nothing of its own.
    """
    known = {domain for member, domains in scores.own.items() if member != name for domain in domains}
    old, new = [], []
    for domain in sorted(known):
        bits, before = scores.domains[domain].bits, _value(scores, domain, BEFORE)
        routed = _value(scores, domain, chosen)
        old.append(
            OldSource(
                source=domain,
                before=before,
                old_route=_value(scores, domain, OLD_ROUTE),
                is_identical=np.array_equal(bits[BEFORE], bits[OLD_ROUTE]),
                routed=routed,
                regression=routed / before - 1,
            )
        )
    for domain in scores.own[name]:
        if domain not in known:
            before, alone, routed = (_value(scores, domain, who) for who in (BEFORE, name, chosen))
            kept = (before - routed) / (before - alone) if alone < before else None
            new.append(NewSource(source=domain, before=before, alone=alone, routed=routed, kept=kept))
    if not new:
        raise _nothing_new(name)
    return old, new


def _nothing_new(name: str) -> ConfigError:
    return ConfigError(f"every source of {name} is one that another member has read", "Give it text of its own")


def _value(scores: MergeScores, domain: str, name: str) -> float:
    measured = scores.domains[domain]
    return float(measured.bits[name].sum() / measured.num_bytes.sum())


def _section(old: Sequence[OldSource], new: Sequence[NewSource]) -> Section:
    rows = []
    for there in old:
        values = (there.before, there.old_route, there.routed)
        before, route, routed = (f"{value:.4f}" for value in values)
        same = "yes" if there.is_identical else "no"
        rows.append([there.source, "old", before, route, same, routed, signed(100 * there.regression, 2), "-", "-"])
    for added in new:
        values = (added.before, added.routed, added.alone)
        before, routed, alone = (f"{value:.4f}" for value in values)
        rows.append([added.source, "new", before, "-", "-", routed, "-", alone, percent(added.kept)])
    columns = ["source", "text", "before", "old route now", "identical bits", "as routed now", "worse by %"]
    columns += ["alone", "gain kept"]
    return Section(
        title="Receipt",
        lead="Bits per byte, lower is better. The old route is that of the members and the rule from before: no bit of "
        "it may change. As routed now, the new member takes part. On new text, it alone has a gain over what was "
        "there before; the last column says which share of that is kept.",
        table=Table(columns, rows, text_columns=(0, 1, 4)),
    )


def _refusal(name: str, old: Sequence[OldSource], max_regression: float) -> GrowtxError | None:
    """Why the addition is not taken into service."""
    changed = [source.source for source in old if not source.is_identical]
    if changed:
        return StoreError(f"{', '.join(changed)}: the old route gives other bits than before", "Verify the run")
    worse = [source for source in old if source.regression > max_regression]
    if not worse:
        return None
    numbers = "; ".join(
        f"{source.source} {source.regression:.2%} worse ({source.before:.4f} to {source.routed:.4f} bits per byte)"
        for source in worse
    )
    return GrowtxError(
        f"with {name}, text that was there before would be predicted worse than the {max_regression:.2%} allowed: "
        f"{numbers}",
        "See the report; try another --rule or a larger --max-regression, with --resume",
    )


def _digest(place: Storage, file: str) -> str:
    return hashlib.sha256(place.read_bytes(file)).hexdigest()
