"""Finding a result by its path, loading it, and continuing it in another run.

A path is a run directory, a manifest in one, an ensemble, or a Hugging Face directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table
from transformers import PreTrainedTokenizerFast

import growtx.models.causal_lm  # noqa: F401 - registers the Auto classes
from growtx.command import resume_command
from growtx.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from growtx.exceptions import StoreError
from growtx.growth.assembly import check_same
from growtx.storage import Storage
from growtx.store.blobs import BlobStore
from growtx.store.manifest import MANIFESTS_DIR, Manifest, read_lineage, read_manifests, write_manifest
from growtx.substrate.build import SUBSTRATE_FILE

TOKENIZER_DIR = "tokenizer"


@dataclass(frozen=True)
class Lineage:
    """The finished stages of a run, first to last."""

    storage: Storage
    manifests: tuple[Manifest, ...]

    @property
    def last(self) -> Manifest:
        return self.manifests[-1]

    def at_depth(self, num_blocks: int) -> Manifest:
        """The newest manifest of that depth."""
        for manifest in reversed(self.manifests):
            if manifest.num_blocks == num_blocks:
                return manifest
        depths = ", ".join(str(depth) for depth in sorted({m.num_blocks for m in self.manifests}))
        raise StoreError(f"{self.storage.root} has no stage of depth {num_blocks}", f"Its depths are {depths}")


def open_lineage(path: str) -> Lineage:
    """The lineage of a run directory, or up to one of its manifests.

    Raises:
        StoreError: there is no finished stage at `path`.
    """
    file_name = None
    root = path.rstrip("/")
    if root.endswith(".json"):
        root, _, file_name = root.rpartition("/")
        root = root.removesuffix(f"/{MANIFESTS_DIR}") if root != MANIFESTS_DIR else "."
    storage = Storage(root)
    if not storage.exists():
        raise StoreError(
            f"{path}: there is no such run", "Give a run directory, a manifest or a Hugging Face directory"
        )
    manifests = read_lineage(storage, file_name)
    if not manifests:
        raise StoreError(
            f"{path} has no finished stage",
            f"Let it finish one ({resume_command('grow', storage.root)}), or give another path",
        )
    return Lineage(storage, tuple(manifests))


def tokenizer_of(lineage: Lineage) -> PreTrainedTokenizerFast:
    """The tokenizer that a lineage was grown on.

    Raises:
        FingerprintError: what is stored there is a different one.
    """
    tokenizer = load_tokenizer(lineage.storage.download(TOKENIZER_DIR))
    where = lineage.storage.path(TOKENIZER_DIR)
    check_same("tokenizer", lineage.last.tokenizer_fingerprint, tokenizer_fingerprint(tokenizer), where)
    return tokenizer


def import_lineage(path: str, target: Storage, *, up_to: str | None = None) -> Manifest:
    """Copy a lineage (manifests, blobs, tokenizer, substrate) into a run that continues it; returns its last manifest.

    Repeating this changes nothing, even if the source was continued meanwhile.

    Args:
        up_to: hash of the manifest that was imported before; None: the newest one there, or of those that the target
            already has.

    Raises:
        StoreError: the manifest that was imported before is not there any more, or something of the source is
            damaged; then nothing was copied but whole blobs.
    """
    source = open_lineage(path)
    files = _files_to_import(source.storage)
    source = Lineage(source.storage, _up_to(source, up_to or _newest_shared(source, target)))
    blobs, own = BlobStore(source.storage), BlobStore(target)
    for manifest in source.manifests:
        for blob in (*manifest.blobs(), *manifest.new_blobs):
            own.copy_from(blobs, blob)
    for file in files:
        target.write_bytes(file, source.storage.read_bytes(file))
    for manifest in source.manifests:
        if not target.exists(f"{MANIFESTS_DIR}/{manifest.file_name}"):
            write_manifest(target, manifest)
    return source.last


def _files_to_import(source: Storage) -> list[str]:
    """The files beside manifests and blobs. A foreign directory may hold anything: only plain names are taken."""
    files = source.list_files(TOKENIZER_DIR)
    if odd := [file for file in files if not _TOKENIZER_FILE.fullmatch(file)]:
        raise StoreError(f"{source.root} has a file that is no part of a tokenizer: {odd[0][:80]!r}", "Remove it")
    return [
        *sorted(files, key=lambda file: file.endswith("/tokenizer.json")),
        SUBSTRATE_FILE,
    ]  # what is asked for, last


_TOKENIZER_FILE = re.compile(rf"{TOKENIZER_DIR}/[A-Za-z0-9._-]{{1,100}}")


def _newest_shared(source: Lineage, target: Storage) -> str | None:
    """The newest manifest of a lineage that a run has, too."""
    own = {manifest.digest() for manifest in read_manifests(target)}
    return next((digest for digest in (m.digest() for m in reversed(source.manifests)) if digest in own), None)


def _up_to(source: Lineage, digest: str | None) -> tuple[Manifest, ...]:
    if digest is None:
        return source.manifests
    for position, manifest in enumerate(source.manifests, start=1):
        if manifest.digest() == digest:
            return source.manifests[:position]
    raise StoreError(
        f"{source.storage.root} no longer has the stage that was continued (sha256 {digest[:12]})",
        "Restore its manifests from a copy, or begin a new run",
    )


# What a manifest's metrics say of the text that its stage has trained on.


WINDOWS = "windows_by_source"  # in this stage, repeated ones counted
WINDOWS_SINCE_FIRST = "windows_by_source_since_first_stage"
OWN_MIX = "own_mix"  # whether this stage, or one before it, had weights of sources of its own


def shares_seen(manifest: Manifest) -> dict[str, float]:
    """The share of each source in what a stage has trained on; empty where that was not written down."""
    windows: dict[str, int] = manifest.metrics.get(WINDOWS) or {}
    total = sum(windows.values())
    return {name: number / total for name, number in windows.items()} if total else {}


# The lineage as tables for people: what each stage trained and reached, and the blobs that the model consists of.


HASH_LENGTH = 12


def stage_table(lineage: Lineage) -> Table:
    """One row per stage: depth, parameters, tokens, held-out bits per byte before and after."""
    table = Table(title=f"Lineage of {lineage.storage.root}", title_justify="left")
    for column in ("stage", "blocks", "active", "total", "tokens", "bits/byte", "ended by"):
        table.add_column(column, justify="right", no_wrap=True)
    for manifest in lineage.manifests:
        table.add_row(
            f"{manifest.index} {manifest.name}",
            str(manifest.num_blocks),
            _millions(manifest.active_parameters),
            _millions(manifest.total_parameters),
            _millions(manifest.num_tokens),
            _bits_per_byte(manifest),
            manifest.ended_by,
        )
    return table


def blob_table(lineage: Lineage) -> Table:
    """One row per blob of the newest model, bottom to top: its hash, its size, the stage that wrote it."""
    store = BlobStore(lineage.storage.root)
    present = set(store.list())
    made_by = {blob: manifest for manifest in reversed(lineage.manifests) for blob in manifest.new_blobs}
    table = Table(title=f"Blobs of {lineage.last.file_name}", title_justify="left")
    for column in ("part", "blob", "bytes", "written by stage"):
        table.add_column(column, justify="right" if column == "bytes" else "left", no_wrap=True)
    for part, blob in _parts(lineage.last):
        maker = made_by.get(blob)
        size = f"{store.size_bytes(blob):,}" if blob in present else "missing"
        table.add_row(part, blob[:HASH_LENGTH], size, f"{maker.index} {maker.name}" if maker else "-")
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:,.3f} M"


def _bits_per_byte(manifest: Manifest) -> str:
    start, end = (manifest.metrics.get(f"eval/bits_per_byte{suffix}") for suffix in ("_start", ""))
    return " → ".join("-" if value is None else f"{value:.3f}" for value in (start, end))


def _parts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "substrate", manifest.substrate
    for index, ref in enumerate(manifest.blocks, start=1):
        yield f"block {index}", ref.blob
        for adapter in ref.adapters:
            yield f"block {index} + adapter", adapter
    yield "norm + head", manifest.head
