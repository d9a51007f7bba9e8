"""Sentences about the world: what a wording's slots hold for a person, a city, a company."""

from __future__ import annotations

from collections.abc import Sequence

from growtx.generator import KeyedGenerator
from growtx.microworld.config import LANGUAGES, Language
from growtx.microworld.lexicon import lexicon
from growtx.microworld.nouns import Noun, sentence
from growtx.microworld.places import CITIES
from growtx.microworld.wordings import CAPITAL, CITY, COMPANY, PERSON, Fact, Wording
from growtx.microworld.world import Person, World

FACTS: tuple[Fact, ...] = ("birth", "study", "work", "hobby", "mentor")
_COLUMN = {language: column for column, language in enumerate(LANGUAGES)}


def join(sentences: Sequence[str], language: Language) -> str:
    """Running text; Chinese has no space between sentences."""
    return ("" if language == "zh" else " ").join(sentences)


def in_language(wording: Wording, language: Language) -> str:
    """A wording's version for a language."""
    return wording[_COLUMN[language]]


def facts_of(person: Person) -> list[Fact]:
    """What there is to say about a person; the oldest have no mentor."""
    return [fact for fact in FACTS if fact != "mentor" or person.mentor is not None]


class Describer:
    """Says things about one world in one language."""

    def __init__(self, world: World, language: Language, paraphrases: int) -> None:
        self.world, self.language, self.paraphrases = world, language, paraphrases
        self.words = lexicon(language)

    def slots(self, person: Person) -> dict[str, object]:
        """Slots of the wordings about a person; `s` is the name until someone puts a pronoun there."""
        words = self.words
        name = self.name(person.number)
        slots: dict[str, object] = {
            "a": name,
            "s": name,
            "city": words.cities[person.birth_city],
            "study": words.cities[person.study_city],
            "date": words.date(person.day, person.month, person.year),
            "job": words.jobs[person.job],
            "company": words.companies[person.company],
            "hobby": words.hobbies[person.hobby],
        }
        if person.mentor is not None:
            slots["b"] = self.name(person.mentor)
        return slots

    def name(self, number: int) -> Noun:
        """The name of a person."""
        return self.world.name(self.language, number)

    def biography(self, person: Person, generator: KeyedGenerator, facts: Sequence[Fact]) -> list[str]:
        """A sentence per fact, in the given order; the first names the person, later ones may say "she"."""
        slots = self.slots(person)
        pronoun = self.words.pronoun(person.woman)
        sentences = []
        for number, fact in enumerate(facts):
            unambiguous = number > 0 and facts[number - 1] != "mentor"  # which names a second person
            slots["s"] = pronoun if unambiguous and generator.randbelow(2) else slots["a"]
            sentences.append(sentence(self._wording(PERSON[fact], generator), slots))
        return sentences

    def city(self, city: int, generator: KeyedGenerator) -> str:
        """In which country a city lies."""
        slots = {"city": self.words.cities[city], "country": self.words.countries[CITIES[city].country]}
        return sentence(self._wording(CITY, generator), slots)

    def capital(self, country: int, generator: KeyedGenerator) -> str:
        """The capital of a country."""
        capital = self.words.cities[self.world.capital(country)]
        return sentence(
            self._wording(CAPITAL, generator), {"country": self.words.countries[country], "capital": capital}
        )

    def company(self, company: int, generator: KeyedGenerator) -> str:
        """In which city a company has its head office."""
        city = self.words.cities[self.world.company_city(company)]
        return sentence(self._wording(COMPANY, generator), {"company": self.words.companies[company], "city": city})

    def _wording(self, wordings: Sequence[Wording], generator: KeyedGenerator) -> str:
        return in_language(wordings[generator.randbelow(min(self.paraphrases, len(wordings)))], self.language)
