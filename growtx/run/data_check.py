"""A run goes on with the text that it began with, or says that it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from growtx.data.packing import PackedData
from growtx.exceptions import ConfigError, DataError
from growtx.growth.plan import Stage
from growtx.storage import Storage
from growtx.store.manifest import Manifest, read_manifests
from growtx.store.run_records import DataChange, DataRecord, SourceReading, read_data_record, write_data_record
from growtx.store.runs import has_metrics
from growtx.train.checkpoints import CHECKPOINTS_DIR

ACCEPT_OPTION = "--accept-new-data"
_is_accepted: ContextVar[bool] = ContextVar("accept_new_data", default=False)


@contextmanager
def accepting_new_data(accept: bool, *, resume: bool) -> Iterator[None]:
    """For all runs that a job prepares inside: whether their text may have changed. Never part of a configuration.

    Raises:
        ConfigError: there is nothing to resume.
    """
    if accept and not resume:
        raise ConfigError(f"{ACCEPT_OPTION} is about a run that goes on", "Add --resume, or leave it out")
    token = _is_accepted.set(accept)
    try:
        yield
    finally:
        _is_accepted.reset(token)


def check_data(
    run: Storage,
    data: PackedData,
    stages: Sequence[Stage],
    parent: Manifest | None,
    readings: tuple[SourceReading, ...] = (),
) -> None:
    """Record the text of a run, or compare it with what was recorded.

    Args:
        data: what the sources hold now.
        stages: of the plan; those of a continued run are not among them.
        readings: how much of each source that is, for the report.

    Raises:
        DataError: the text of a source is not what the run was trained on; nothing has been changed.
    """
    found = DataRecord(
        data_fingerprint=data.fingerprint,
        sources=data.source_fingerprints,
        packed_path=data.path,
        parent=None if parent is None else parent.digest(),
        readings=readings,
    )
    own = [manifest for manifest in read_manifests(run) if stages[0].index <= manifest.index <= stages[-1].index]
    recorded = read_data_record(run) or _of_old_run(found, own)
    last = max((manifest.index for manifest in own), default=stages[0].index - 1)
    if recorded is None or not _has_trained(run, own):
        write_data_record(run, found)
    elif recorded.data_fingerprint == found.data_fingerprint:
        write_data_record(run, recorded.model_copy(update={"packed_path": found.packed_path, "readings": readings}))
    elif last >= stages[-1].index:
        write_data_record(run, recorded)  # of a finished run only model and report are made again
    else:
        changes = tuple(_changes(recorded.sources, found.sources, stage=last + 1))
        if not _is_accepted.get():
            raise DataError(
                "; ".join(_refusal(change) for change in changes),
                f"Restore the text, or add {ACCEPT_OPTION} to continue with the new one (lineage and report say so)",
            )
        write_data_record(run, found.model_copy(update={"changes": (*recorded.changes, *changes)}))


def _has_trained(run: Storage, own: Sequence[Manifest]) -> bool:
    return bool(own) or has_metrics(run) or run.exists(CHECKPOINTS_DIR)


def _of_old_run(found: DataRecord, own: Sequence[Manifest]) -> DataRecord | None:
    """What the newest manifest of a run without a record says: all sources together."""
    if not own:
        return None
    before = own[-1].data_fingerprint
    sources = found.sources if before == found.data_fingerprint else {"(all sources)": before}
    return found.model_copy(update={"data_fingerprint": before, "sources": sources})


def _changes(before: Mapping[str, str], after: Mapping[str, str], *, stage: int) -> Iterator[DataChange]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    names = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    for name in names or ["(weights)"]:
        yield DataChange(source=name, before=before.get(name), after=after.get(name), stage=stage, accepted=now)


def _refusal(change: DataChange) -> str:
    before, after = (value[:12] if value else "none" for value in (change.before, change.after))
    return f"the text of source {change.source} is not what this run was trained on ({after}, recorded {before})"
