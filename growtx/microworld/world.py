"""The world behind the text: who the people are. Every fact is a pure function of (seed, number of the person)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from growtx.generator import KeyedGenerator, key64, permute
from growtx.microworld.config import Language, MicroworldConfig
from growtx.microworld.lexicon import NUM_COMPANIES, NUM_FAMILIES, NUM_GIVEN, NUM_WOMEN, lexicon
from growtx.microworld.nouns import Noun
from growtx.microworld.places import CAPITALS, CITIES

FIRST_YEAR, NUM_YEARS = 1930, 70
PEOPLE_PER_COMPANY = 12
NAMES_WITHOUT_MIDDLE = NUM_GIVEN * NUM_FAMILIES
NAMES_WITH_MIDDLE = NAMES_WITHOUT_MIDDLE * (NUM_WOMEN - 1)


class Name(NamedTuple):
    """Numbers of the words of a name in the lexicon."""

    given: int
    middle: int | None
    family: int


class Group(NamedTuple):
    """People first .. first + size - 1."""

    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Person:
    """One person; places, companies, ... are numbers in the lexicon."""

    number: int
    name: Name
    day: int
    month: int  # from 0
    year: int
    birth_city: int
    study_city: int
    job: int
    company: int
    hobby: int
    mentor: int | None  # number of an older person of the same group

    @property
    def woman(self) -> bool:
        """Whose pronoun is "she"."""
        return self.name.given < NUM_WOMEN


class World:
    """Everybody there is, in three groups (see the package): known, held_out and strangers."""

    def __init__(self, config: MicroworldConfig) -> None:
        self.seed, self.num_people = config.seed, config.num_people
        num_known = config.num_people - config.num_held_out_people
        self.known = Group(0, num_known)
        self.held_out = Group(num_known, config.num_held_out_people)
        self.strangers = Group(config.num_people, config.num_people)
        companies = KeyedGenerator(self.seed, "companies").sample_range(NUM_COMPANIES, self._num_companies())
        self.company_numbers = tuple(companies)
        everyone = self.strangers.first + self.strangers.size
        self._with_middle = everyone > NAMES_WITHOUT_MIDDLE
        num_names = NAMES_WITH_MIDDLE if self._with_middle else NAMES_WITHOUT_MIDDLE
        self._names = permute(np.arange(everyone), num_names, key64(self.seed, 0)).tolist()
        self.person = lru_cache(maxsize=1 << 16)(self._person)
        self.name = lru_cache(maxsize=1 << 17)(self._name)

    def group_of(self, number: int) -> Group:
        """The group that a person belongs to."""
        if number < self.held_out.first:
            return self.known
        return self.held_out if number < self.strangers.first else self.strangers

    def company_city(self, company: int) -> int:
        """Where a company has its head office."""
        return KeyedGenerator(self.seed, "company", company).randbelow(len(CITIES))

    def country(self, city: int) -> int:
        """The country of a city."""
        return CITIES[city].country

    def capital(self, country: int) -> int:
        """The capital of a country."""
        return CAPITALS[country]

    def _num_companies(self) -> int:
        return max(8, min(NUM_COMPANIES, self.num_people // PEOPLE_PER_COMPANY))

    def _name(self, language: Language, number: int) -> Noun:
        return lexicon(language).person(*self.person(number).name)

    def _person(self, number: int) -> Person:
        generator = KeyedGenerator(self.seed, "person", number)
        first, size = self.group_of(number)
        rank = number - first
        return Person(
            number=number,
            name=self._name_words(self._names[number]),
            day=1 + generator.randbelow(28),
            month=generator.randbelow(12),
            year=FIRST_YEAR + NUM_YEARS * rank // size,  # so that a smaller number of a group is an older person
            birth_city=generator.randbelow(len(CITIES)),
            study_city=generator.randbelow(len(CITIES)),
            job=generator.randbelow(len(lexicon("en").jobs)),
            company=generator.choice(self.company_numbers),
            hobby=generator.randbelow(len(lexicon("en").hobbies)),
            mentor=first + generator.randbelow(rank - size // 5)
            if rank > size // 5
            else None,  # at least 14 years older
        )

    def _name_words(self, name: int) -> Name:
        name, family = divmod(name, NUM_FAMILIES)
        rest, given = divmod(name, NUM_GIVEN)
        if not self._with_middle:
            return Name(given, None, family)
        first = 0 if given < NUM_WOMEN else NUM_WOMEN
        middle = first + (given - first + 1 + rest) % NUM_WOMEN  # of the same gender, and another than the first
        return Name(given, middle, family)
