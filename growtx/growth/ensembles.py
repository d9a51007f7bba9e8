"""Ensembles on disk: `ensemble.json` names members by the hash of their manifests and copies none of their weights.

A directory with an `ensemble.json` is a result like a run directory. What a fitted rule has learned is in its own
`blobs/`; everything else stays in the members' run directories, so adding, removing or replacing a member leaves all
others as they were, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from transformers import PreTrainedTokenizerFast

from growtx.config import ConfigModel, check_record, parse_json
from growtx.exceptions import ConfigError, GrowtxError, StoreError, about
from growtx.growth.assembly import assemble
from growtx.growth.lineage import Lineage, open_lineage, tokenizer_of
from growtx.models.ensemble import GrowtxEnsembleForCausalLM, from_members
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.store.manifest import MANIFEST_FILE, MANIFESTS_DIR, Hash, Manifest

ENSEMBLE_FILE = "ensemble.json"
ENSEMBLE_FORMAT_VERSION = 1


class MemberRef(ConfigModel):
    """One specialist: a manifest of a run, pinned by its hash."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    run: str = Field(description="run directory; relative to the ensemble if it is below or next to it")
    manifest: str = Field(pattern=f"^{MANIFEST_FILE}$", description="file name below the run's manifests/")
    digest: Hash = Field(description="sha256 of the manifest's bytes")


class EnsembleManifest(ConfigModel):
    """What `ensemble.json` holds."""

    format_version: int = ENSEMBLE_FORMAT_VERSION
    members: tuple[MemberRef, ...] = Field(min_length=1, max_length=1000)
    rule: dict[str, Any] = Field(description="name and options of the combination rule")
    rule_blob: Hash | None = Field(None, description="tensors that the rule has learned; null: none")
    tokenizer_fingerprint: str
    substrate_fingerprint: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @field_validator("members")
    @classmethod
    def _names_differ(cls, members: tuple[MemberRef, ...]) -> tuple[MemberRef, ...]:
        if len({member.name for member in members}) < len(members):
            raise ValueError("two members have one name")
        return members

    @field_validator("rule")
    @classmethod
    def _rule_has_a_name(cls, rule: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(rule.get("name"), str):
            raise ValueError("the rule has no name")
        return rule

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    def member(self, name: str) -> MemberRef:
        """Raises ConfigError: there is no such member."""
        for member in self.members:
            if member.name == name:
                return member
        raise ConfigError(f"the ensemble has no member {name}", f"Its members are {', '.join(self.names)}")


def ensemble_root(path: str) -> str:
    """The directory of an ensemble, given that directory or its file."""
    trimmed = path.rstrip("/")
    if trimmed == ENSEMBLE_FILE:
        return "."
    return trimmed.removesuffix(f"/{ENSEMBLE_FILE}")


def read_ensemble(path: str) -> EnsembleManifest:
    """The manifest of an ensemble.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    storage = Storage(ensemble_root(path))
    where = storage.path(ENSEMBLE_FILE)
    tree = parse_json(storage.read_bytes(ENSEMBLE_FILE), where, "Merge the members again")
    if isinstance(tree, dict) and tree.get("format_version") != ENSEMBLE_FORMAT_VERSION:
        raise StoreError(
            f"{where} has format version {str(tree.get('format_version'))[:20]}, "
            f"but this version reads {ENSEMBLE_FORMAT_VERSION}",
            "Use the version of growtx that wrote it",
        )
    return check_record(EnsembleManifest, tree, where, "Merge the members again")


def new_ensemble(out: str, runs: Mapping[str, str], *, rule: dict[str, Any] | str = "mean") -> EnsembleManifest:
    """The manifest, not yet written, of an ensemble of runs (or manifests of runs).

    Args:
        out: directory that the ensemble will be in; members below or next to it are named relative to it.
        runs: paths by member name.

    Raises:
        StoreError: a member is not there; FingerprintError: two do not share tokenizer or substrate.
    """
    if not runs:
        raise ConfigError("an ensemble needs at least one member", "Name the specialists to combine")
    lineages = {}
    for name, path in runs.items():
        with about(f"member {name}"):
            lineages[name] = open_lineage(path)
    last = next(iter(lineages.values())).last
    return EnsembleManifest(
        members=tuple(_reference(out, name, lineage) for name, lineage in lineages.items()),
        rule={"name": rule} if isinstance(rule, str) else rule,
        tokenizer_fingerprint=last.tokenizer_fingerprint,
        substrate_fingerprint=last.substrate_fingerprint,
    )


def write_ensemble(out: str, manifest: EnsembleManifest, ensemble: GrowtxEnsembleForCausalLM) -> EnsembleManifest:
    """Write an ensemble with the rule that it has now; returns the manifest as written."""
    tensors = dict(ensemble.rule.state_dict())
    storage = Storage(out)
    written = manifest.model_copy(
        update={"rule": ensemble.rule.spec(), "rule_blob": BlobStore(out).put(tensors) if tensors else None}
    )
    storage.write_text(ENSEMBLE_FILE, written.model_dump_json(indent=1) + "\n")
    return written


def load_ensemble(path: str) -> tuple[GrowtxEnsembleForCausalLM, PreTrainedTokenizerFast]:
    """Load an ensemble, every blob of every member verified.

    Raises:
        GrowtxError: naming the member that is missing, damaged, not finite, or grown on something else.
    """
    manifest, root = read_ensemble(path), ensemble_root(path)
    ensemble, tokenizer = assemble_ensemble(root, manifest)
    if manifest.rule_blob is not None:
        tensors = BlobStore(root).get(manifest.rule_blob)
        try:
            ensemble.rule.load_state_dict(tensors)
        except RuntimeError as error:
            raise StoreError(
                f"{root}: the learned tensors do not fit the rule {ensemble.rule.name}", "Merge the members again"
            ) from error
    return ensemble.eval(), tokenizer


def assemble_ensemble(
    root: str, manifest: EnsembleManifest
) -> tuple[GrowtxEnsembleForCausalLM, PreTrainedTokenizerFast]:
    """The members of a manifest as one model whose rule is not fitted, and their tokenizer."""
    models, tokenizers = {}, []
    for member in manifest.members:
        with about(f"member {member.name}"):
            lineage, found = open_member(root, member)
            models[member.name] = assemble(BlobStore(lineage.storage.root), found).eval()
            tokenizers.append(tokenizer_of(lineage))
    return from_members(models, rule=manifest.rule), tokenizers[0]


def open_member(root: str, member: MemberRef) -> tuple[Lineage, Manifest]:
    """A member's lineage up to the manifest that the ensemble pins.

    Raises:
        StoreError: it is missing, or is not the one that was merged.
    """
    run = _resolve(root, member.run)
    lineage = open_lineage(f"{run}/{MANIFESTS_DIR}/{member.manifest}")
    found = hashlib.sha256(lineage.storage.read_bytes(f"{MANIFESTS_DIR}/{member.manifest}")).hexdigest()
    if found != member.digest:
        raise StoreError(
            f"manifest {member.manifest} of {run} is not the one that was merged "
            f"(sha256 {found[:12]}, expected {member.digest[:12]})",
            "Restore it from a copy, or merge the runs again",
        )
    return lineage, lineage.last


def verify_ensemble(path: str) -> list[str]:
    """Recompute all hashes that an ensemble depends on; one sentence for each problem, none if it is intact."""
    manifest, root = read_ensemble(path), ensemble_root(path)
    problems = []
    for member in manifest.members:
        try:
            lineage, found = open_member(root, member)
        except GrowtxError as error:
            problems.append(f"member {member.name}: {error}")
            continue
        store = BlobStore(lineage.storage.root)
        damaged = [blob for blob in dict.fromkeys(found.blobs()) if not store.is_intact(blob)]
        problems += [f"member {member.name}: blob {blob} is missing or corrupt" for blob in damaged]
    if manifest.rule_blob and not BlobStore(root).is_intact(manifest.rule_blob):
        problems.append(f"rule {manifest.rule['name']}: blob {manifest.rule_blob} is missing or corrupt")
    if not problems:
        try:
            load_ensemble(path)  # what hashes cannot tell: other tokenizers or substrates, weights that are not finite
        except GrowtxError as error:
            problems.append(str(error))
    return problems


def changed_ensemble(
    path: str, out: str, runs: Mapping[str, str] | None = None, *, without: Sequence[str] = ()
) -> EnsembleManifest:
    """The manifest, not yet written, of an ensemble with members added, replaced and removed.

    Members that are not named keep their hashes. What the rule had learned was for other members: it starts anew.

    Args:
        out: directory that the changed ensemble will be in; may be that of `path`.
        runs: paths of new members; a name that the ensemble has already is replaced.
        without: names of members to remove.

    Raises:
        ConfigError: no such member, or none would be left.
    """
    old = read_ensemble(path)
    for name in without:
        old.member(name)
    moved = (
        member.model_copy(update={"run": _relative(out, _resolve(ensemble_root(path), member.run))})
        for member in old.members
    )
    new = {member.name: member for member in new_ensemble(out, runs).members} if runs else {}
    kept = [new.pop(member.name, member) for member in moved if member.name not in without]
    if not (kept or new):
        raise ConfigError("no member would be left in the ensemble", "Keep at least one")
    changes = {"members": (*kept, *new.values()), "rule": {"name": old.rule["name"]}, "rule_blob": None}
    return old.model_copy(update=changes)


def _reference(out: str, name: str, lineage: Lineage) -> MemberRef:
    last = lineage.last
    data = lineage.storage.read_bytes(f"{MANIFESTS_DIR}/{last.file_name}")
    return MemberRef(
        name=name,
        run=_relative(out, lineage.storage.root),
        manifest=last.file_name,
        digest=hashlib.sha256(data).hexdigest(),
    )


def _absolute(path: str) -> str:
    return path.rstrip("/") if "://" in path else str(Path(os.path.abspath(path)))  # noqa: PTH100 - links stay links


def _relative(out: str, run: str) -> str:
    """`run` as named from `out`: relative below it and beside it, so that both can be moved together."""
    out, run = _absolute(out), _absolute(run)
    if run.startswith(f"{out}/"):
        return run[len(out) + 1 :]
    parent = out.rpartition("/")[0]
    return f"../{run[len(parent) + 1 :]}" if parent and run.startswith(f"{parent}/") else run


def _resolve(root: str, run: str) -> str:
    if "://" in run or run.startswith("/"):
        return run
    root = _absolute(root)
    if run.startswith("../"):
        return f"{root.rpartition('/')[0]}/{run.removeprefix('../')}"
    return f"{root}/{run}"
