"""Errors: one sentence that says what is wrong, one that says what to do, and an exit status."""

from __future__ import annotations

import pickle

import pytest

from growtx import exceptions
from growtx.exceptions import ConfigError, GrowtxError, RunsFailedError, StoreError, TrainingError

CLASSES = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, GrowtxError)]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (("the disk is full", "Free some space"), "the disk is full. Free some space."),
        (("the disk is full.", "Free some space."), "the disk is full. Free some space."),
        (("the disk is full",), "the disk is full."),
        (("unknown key", "Did you mean 'seed'?"), "unknown key. Did you mean 'seed'?"),
    ],
)
def test_an_error_reads_as_sentences(parts: tuple[str, ...], sentence: str) -> None:
    assert str(GrowtxError(*parts)) == sentence


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not RunsFailedError])
def test_an_error_survives_the_way_from_a_worker_to_the_driver(kind: type[GrowtxError]) -> None:
    error = pickle.loads(pickle.dumps(kind("problem", "remedy")))
    assert type(error) is kind
    assert (error.problem, error.remedy, str(error)) == ("problem", "remedy", "problem. remedy.")


def test_the_failures_of_several_runs_survive_it_too() -> None:
    error = RunsFailedError({"/runs/a": TrainingError("the loss is not finite", "Lower the learning rate")})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is RunsFailedError and str(again) == str(error)
    assert str(again.failures["/runs/a"]) == "the loss is not finite. Lower the learning rate."


def test_wrong_requests_exit_with_2_and_failed_work_with_1() -> None:
    codes = {kind.__name__: kind.exit_code for kind in CLASSES}
    wrong_requests = {name for name, code in codes.items() if code == 2}
    assert wrong_requests == {"ConfigError", "BudgetError", "ResourceError"}
    assert set(codes.values()) == {1, 2}


def test_every_kind_can_be_caught_as_one() -> None:
    assert len(CLASSES) >= 11
    assert issubclass(ConfigError, GrowtxError) and issubclass(exceptions.CorruptBlobError, StoreError)
