"""The lineage as tables for people: what each stage trained and reached, and the blobs that the model consists of."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from growtx.growth.lineage import Lineage
from growtx.store.blobs import BlobStore
from growtx.store.manifest import Manifest

HASH_LENGTH = 12


def stage_table(lineage: Lineage) -> Table:
    """One row a stage: depth, parameters, tokens, held-out bits per byte before and after."""
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
    """One row a blob of the newest model, bottom to top: its hash, its size, the stage that wrote it."""
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
