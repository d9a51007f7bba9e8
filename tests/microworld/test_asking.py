from __future__ import annotations

import re

import pytest

from growtx.generator import KeyedGenerator
from growtx.microworld.asking import ATTRIBUTES, ask, ask_oldest
from growtx.microworld.config import LANGUAGES, MAX_HOPS, MicroworldConfig
from growtx.microworld.lexicon import lexicon
from growtx.microworld.places import CAPITALS, CITIES, COUNTRIES
from growtx.microworld.world import World

WORLD = World(MicroworldConfig(num_people=60))
NUMBERS = {str(WORLD.name("en", number)): number for number in range(60)}


def _attribute_and_hops(question: str) -> tuple[str, int, str]:
    """Which attribute is asked of whom, recognised by the English wording; mentors add a hop each."""
    for name, attribute in ATTRIBUTES.items():
        pattern = re.escape(attribute.wording[0]).replace(r"\{a\}", "(?P<who>.+)")
        if found := re.fullmatch(pattern, question):
            person = found["who"].removeprefix("the mentor of ").removeprefix("the mentor of ")
            return name, attribute.hops + found["who"].count("the mentor of "), person
    raise AssertionError(question)


@pytest.mark.parametrize("hops", range(1, MAX_HOPS + 1))
def test_questions_take_as_many_facts_as_they_say(hops: int) -> None:
    asked = [ask(WORLD, "en", WORLD.known, hops, KeyedGenerator("ask", trial)) for trial in range(60)]
    found = [_attribute_and_hops(item.question) for item in asked]
    assert {number for _, number, _ in found} == {hops}
    assert len({name for name, _, _ in found}) >= 3


def test_only_the_group_is_asked_about() -> None:
    for trial in range(60):
        asked = ask(WORLD, "en", WORLD.held_out, 1 + trial % MAX_HOPS, KeyedGenerator("ask", trial))
        number = NUMBERS[_attribute_and_hops(asked.question)[2]]
        assert WORLD.group_of(number) == WORLD.held_out


def test_the_capital_of_the_country_of_birth_is_found_step_by_step() -> None:
    words = lexicon("en")
    for trial in range(200):
        asked = ask(WORLD, "en", WORLD.known, 3, KeyedGenerator("capital", trial))
        name, _, who = _attribute_and_hops(asked.question)
        if name == "birth_capital":
            born_in = words.cities[WORLD.person(NUMBERS[who]).birth_city]
            country = COUNTRIES[CITIES[[city.en for city in CITIES].index(born_in)].country]
            capital = CITIES[CAPITALS[COUNTRIES.index(country)]]
            assert asked.answer == capital.en
            return
    raise AssertionError("the attribute was never asked")


@pytest.mark.parametrize("language", LANGUAGES)
def test_wrong_answers_are_wrong_and_different(language: str) -> None:
    for trial in range(200):
        asked = ask(WORLD, language, WORLD.known, 1 + trial % MAX_HOPS, KeyedGenerator(trial))  # type: ignore[arg-type]
        assert len({asked.answer, *asked.wrong}) == 4


def test_stopping_one_mentor_early_is_among_the_wrong_answers() -> None:
    for trial in range(300):
        asked = ask(WORLD, "en", WORLD.known, 2, KeyedGenerator("early", trial))
        if found := re.fullmatch(r"In which city was the mentor of (.+) born\?", asked.question):
            own = lexicon("en").cities[WORLD.person(NUMBERS[found[1]]).birth_city]
            assert own in (asked.answer, *asked.wrong)
            return
    raise AssertionError("the mentor's city of birth was never asked for")


def test_the_first_born_is_the_only_one_of_that_year() -> None:
    for trial in range(50):
        asked = ask_oldest(WORLD, "en", WORLD.known, KeyedGenerator(trial))
        years = [WORLD.person(NUMBERS[name]).year for name in (asked.answer, *asked.wrong)]
        assert years[0] < min(years[1:])
