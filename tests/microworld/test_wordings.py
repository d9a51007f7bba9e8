from __future__ import annotations

import re
from string import Formatter

import pytest

from growtx.generator import KeyedGenerator
from growtx.microworld import asking, wordings
from growtx.microworld.config import LANGUAGES, MAX_PARAPHRASES, Language, MicroworldConfig
from growtx.microworld.facts import Describer, facts_of, join
from growtx.microworld.lexicon import lexicon
from growtx.microworld.stories import PLOT, tell
from growtx.microworld.wordings import Wording
from growtx.microworld.world import World

TABLES: list[tuple[Wording, ...]] = [
    *wordings.PERSON.values(),
    wordings.CITY,
    wordings.CAPITAL,
    wordings.COMPANY,
    *PLOT,
    tuple(attribute.wording for attribute in asking.ATTRIBUTES.values()),
]


def _slots(text: str) -> set[str]:
    """What a wording speaks of; a pronoun speaks of the person."""
    names = {name.split(".")[0] for _, name, _, _ in Formatter().parse(text) if name}
    return {"a" if name == "s" else name for name in names}


@pytest.mark.parametrize("wording", [wording for table in TABLES for wording in table], ids=lambda w: w[0][:40])
def test_the_three_versions_of_a_wording_speak_of_the_same_things(wording: Wording) -> None:
    english, russian, chinese = map(_slots, wording)
    assert english == russian == chinese


def test_every_fact_has_as_many_wordings_as_the_configuration_may_ask_for() -> None:
    assert {len(table) for table in wordings.PERSON.values()} == {MAX_PARAPHRASES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_slot_or_alternative_is_left_in_a_text(language: Language) -> None:
    world = World(MicroworldConfig())
    describer = Describer(world, language, MAX_PARAPHRASES)
    for number in range(200):
        generator = KeyedGenerator("wordings", number)
        person = world.person(number)
        text = join(
            describer.biography(person, generator, facts_of(person)) + tell(lexicon(language), generator), language
        )
        text += describer.city(0, generator) + describer.capital(0, generator) + describer.company(0, generator)
        assert not re.search(r"[\[\]{}|/]", text), text
        assert not re.search(r"\s\s|\s[,.]", text), text
