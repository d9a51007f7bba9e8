"""Every puzzle is solved again from its English text alone."""

from __future__ import annotations

import re

import pytest

from growtx.generator import KeyedGenerator
from growtx.microworld.config import LANGUAGES
from growtx.microworld.puzzles import NUM_LINKS, PUZZLES, Puzzle, puzzle

NUM_TRIALS = 50


def _solve_chain(made: Puzzle) -> str:
    manager: dict[str, str] = {}
    for sentence in made.context.split(". "):
        if found := re.fullmatch(r"(\w+) is the manager of (\w+)\.?", sentence):
            manager[found[2]] = found[1]
        elif found := re.fullmatch(r"(\w+) reports to (\w+)\.?", sentence):
            manager[found[1]] = found[2]
    assert len(manager) == 2 * NUM_LINKS
    person: str = re.findall(r"\w+", made.question)[-1]
    for _ in range(made.question.count("the manager")):
        person = manager[person]
    return person


def _solve_track(made: Puzzle) -> str:
    place: dict[str, str] = {}
    for sentence in made.context.split(". "):
        found = re.fullmatch(r"\w+ puts the (?P<thing>\w+) into the (?P<place>\w+)\.?", sentence) or re.fullmatch(
            r"Into the (?P<place>\w+) \w+ puts the (?P<thing>\w+)\.?", sentence
        )
        assert found
        place[found["thing"]] = found["place"]
    asked = re.fullmatch(r"Where is the (\w+) now\?", made.question)
    assert asked
    return f"in the {place[asked[1]]}"


def _solve_count(made: Puzzle) -> str:
    asked = re.fullmatch(r"How many of these people live in (.+)\?", made.question)
    assert asked
    return str(len(re.findall(rf" in {asked[1]}(?:\.|$)", made.context)))


def _solve_order(made: Puzzle) -> str:
    older = {(a, b) for a, b in re.findall(r"(\w+) is older than (\w+)", made.context)}
    older |= {(b, a) for a, b in re.findall(r"(\w+) is younger than (\w+)", made.context)}
    everybody = {person for pair in older for person in pair}
    beaten = {pair[1] if "oldest" in made.question else pair[0] for pair in older}
    extreme: str
    (extreme,) = everybody - beaten
    return extreme


@pytest.mark.parametrize("task", PUZZLES)
def test_the_answer_follows_from_the_text(task: str) -> None:
    solve = {"track": _solve_track, "count": _solve_count, "order": _solve_order}.get(task, _solve_chain)
    for trial in range(NUM_TRIALS):
        made = puzzle(task, "en", KeyedGenerator("puzzle", trial))
        assert solve(made) == made.answer, made


@pytest.mark.parametrize("task", PUZZLES)
def test_choices_are_different_in_every_language(task: str) -> None:
    for language in LANGUAGES:
        for trial in range(NUM_TRIALS):
            made = puzzle(task, language, KeyedGenerator("puzzle", trial))
            assert len({made.answer, *made.wrong}) == 4


def test_chains_differ_in_the_question_only() -> None:
    made = [puzzle(f"chain_{hops}", "en", KeyedGenerator("same")) for hops in (1, 4)]
    assert made[0].context == made[1].context
    assert made[0].question != made[1].question


def test_russian_questions_put_every_manager_into_the_genitive() -> None:
    assert "Кто начальник начальника начальника " in puzzle("chain_3", "ru", KeyedGenerator(1)).question
