"""The one error hierarchy.

Every error that a user can cause is a `GrowtxError`: one sentence that says what is wrong and one that says
what to do. Commands print it without a traceback and exit with `exit_code` (2: the request was wrong,
1: the work failed). Broken invariants of our own code are `assert`s, never these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class GrowtxError(Exception):
    """Root of all errors that are reported to a user as a sentence."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem.rstrip(".")
        self.remedy = remedy.rstrip(".")
        super().__init__(problem, remedy)  # both in `args`, so that the error survives pickling between processes

    def __str__(self) -> str:
        return " ".join(text if text.endswith("?") else f"{text}." for text in (self.problem, self.remedy) if text)


def reason_of(error: BaseException) -> str:
    """What somebody else's error says, in one line of at most 200 characters, for a sentence of ours."""
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(str(said).split())[:200] or type(error).__name__


@contextmanager
def about(what: str) -> Iterator[None]:
    """Errors inside say first what they are about."""
    try:
        yield
    except GrowtxError as error:
        raise type(error)(f"{what}: {error.problem}", error.remedy) from error


class ConfigError(GrowtxError):
    """A key, a value or a command line that cannot be used."""

    exit_code = 2


class BudgetError(ConfigError):
    """A plan that needs more active parameters or memory than its budget allows."""


class ResourceError(ConfigError):
    """The cluster does not have what the configuration asks for."""


class DataError(GrowtxError):
    """Text, a corpus or a tokenizer that is missing, empty or not readable."""


class SubstrateError(GrowtxError):
    """A font or a substrate that cannot be used."""


class StoreError(GrowtxError):
    """A run directory, blob or manifest that is missing or not as recorded."""


class CorruptBlobError(StoreError):
    """Bytes that do not hash to the name they are stored under."""


class FencedError(StoreError):
    """A write of a process whose run another process has taken over."""


class FingerprintError(StoreError):
    """Two things that must share a tokenizer or substrate do not."""


class TrainingError(GrowtxError):
    """Training could not continue (non-finite loss, workers lost for good)."""


class RunsFailedError(TrainingError):
    """Some of the runs of a worker group failed; the others ran to completion."""

    def __init__(self, failures: Mapping[str, GrowtxError]) -> None:
        self.failures = dict(failures)
        reasons = "; ".join(f"{run_dir}: {str(error).rstrip('.')}" for run_dir, error in failures.items())
        super().__init__(f"{len(failures)} of the runs failed ({reasons})", "The others ran to completion")
        self.args = (self.failures,)  # what pickling makes it again from


class ExportError(GrowtxError):
    """A model that cannot be written exactly in the requested format."""
