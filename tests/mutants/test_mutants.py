"""The list of planted bugs fits the code as it is, so that nobody forgets to keep it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import run

MUTANTS = run.read_mutants()


def test_there_are_enough_of_them_and_each_has_a_name() -> None:
    assert len(MUTANTS) >= 250
    assert [name for name, count in Counter(mutant.id for mutant in MUTANTS).items() if count > 1] == []
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_each_applies_once_and_names_tests_that_exist(mutant: run.Mutant) -> None:
    assert mutant.planted((run.ROOT / mutant.file).read_text(encoding="utf-8"))
    assert mutant.tests
    for test in mutant.tests:
        path, _, name = test.partition("::")
        text = (run.ROOT / path).read_text(encoding="utf-8")
        assert f"def {name.split('[')[0]}(" in text if name else Path(path).name.startswith("test_")


def test_a_bug_that_does_not_fit_is_an_error() -> None:
    bug = run.Mutant(id="x", file="x.py", old="a", new="b", tests=())
    assert bug.planted("a = 1") == "b = 1"
    for text, new in (("c = 1", "b"), ("a = a", "b"), ("a = 1", "a"), ("a = 1", "(")):
        with pytest.raises(run.NotApplicableError):
            run.Mutant(id="x", file="x.py", old="a", new=new, tests=()).planted(text)


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "3 passed", ("survived", "")),
        (1, "FAILED tests/test_x.py::test_y - assert 0\n1 failed", ("killed", "tests/test_x.py::test_y")),
        (2, "ERROR tests/test_x.py - ImportError", ("killed", "tests/test_x.py")),
        (-9, "", ("killed", "ended by signal 9")),
        (1, "", ("error", "status 1")),
        (4, "ERROR: file or directory not found", ("error", "status 4")),
        (5, "no tests ran", ("error", "status 5")),
    ],
)
def test_only_a_test_that_fails_counts_as_noticing(status: int, output: str, expected: tuple[str, str]) -> None:
    found = run.outcome(status, 1.0, output)
    assert (found.result, found.by) == expected


def test_results_are_taken_up_again_unless_what_they_depend_on_changed(tmp_path: Path) -> None:
    records = run.Records(tmp_path / "results.jsonl")
    records.add("x", "key", run.Outcome("killed", 1.0, "tests/test_x.py::test_y"))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps({"id": "torn"})[:5])
    again = run.Records(tmp_path / "results.jsonl")
    assert again.get("x", "key") == run.Outcome("killed", 1.0, "tests/test_x.py::test_y")
    assert again.get("x", "another key") is None
    assert again.get("torn", "key") is None


def test_survivors_need_a_reason_and_reasons_need_a_survivor() -> None:
    def mutant(name: str, reason: str | None = None) -> run.Mutant:
        return run.Mutant(id=name, file="x.py", old="a", new="b", tests=(), reason=reason)

    killed, survived = run.Outcome("killed", 1.0), run.Outcome("survived", 1.0)
    many = [mutant(str(number)) for number in range(40)]
    found = {entry.id: killed for entry in many}
    assert run.summary(many, found)[1]
    for extra, outcome, fine in (
        (mutant("m"), survived, False),
        (mutant("m", "the same numbers"), survived, True),
        (mutant("m", "the same numbers"), killed, False),
        (mutant("m"), run.Outcome("error", 0.0, "gone"), False),
    ):
        assert run.summary([*many, extra], {**found, "m": outcome})[1] is fine


def test_parts_of_the_list_are_disjoint_and_make_the_whole() -> None:
    patterns = ["blob-*", "seal-*"]
    parts = [run.chosen(MUTANTS, patterns, f"{number}/3") for number in (1, 2, 3)]
    whole = run.chosen(MUTANTS, patterns, "1/1")
    assert {mutant.id.partition("-")[0] for mutant in whole} == {"blob", "seal"}
    assert sorted(mutant.id for part in parts for mutant in part) == sorted(mutant.id for mutant in whole)
