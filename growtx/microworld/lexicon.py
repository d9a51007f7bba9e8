"""The words of each language as `Noun`s, in one order for all languages: number k means the same thing in each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from growtx.microworld import names, places, things
from growtx.microworld.config import Language
from growtx.microworld.nouns import Noun, russian_family_name, russian_given_name

GENDERS = (True, False)  # of the given names: first all women, then all men
NUM_WOMEN = len(names.WOMEN)
NUM_GIVEN = len(names.WOMEN) + len(names.MEN)
NUM_FAMILIES = len(names.FOREIGN_FAMILIES) + len(names.RUSSIAN_FAMILIES)
NUM_COMPANIES = len(things.rows(things.COMPANY_FIRST)) * len(things.rows(things.COMPANY_SECOND))
assert len(names.WOMEN) == len(names.MEN), "a middle name is found by counting within one gender"


class Lexicon:
    """All words of one language."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self.given = [*self._given(True), *self._given(False)]
        self.families = {woman: list(self._families(woman)) for woman in GENDERS}
        self.cities = [self._place(place) for place in places.CITIES]
        self.countries = [self._place(place) for place in places.COUNTRIES]
        self.jobs = [self._job(*row) for row in things.rows(things.JOBS)]
        self.hobbies = [Noun(self._of(*row)) for row in things.rows(things.HOBBIES)]
        self.companies = [Noun(name) for name in self._companies()]
        self.spots = [self._spot(*row) for row in things.rows(things.SPOTS)]
        self.things = [self._thing(*row) for row in things.rows(things.THINGS)]
        self.containers = [self._container(*row) for row in things.rows(things.CONTAINERS)]
        self.foods = [self._of(*row) for row in things.rows(things.FOODS)]
        self.weather = [self._of(*row) for row in things.rows(things.WEATHER)]
        self.weekdays = [self._of(*row) for row in things.rows(things.WEEKDAYS)]

    def person(self, given: int, middle: int | None, family: int) -> Noun:
        """A full name with its cases."""
        woman = given < NUM_WOMEN
        parts = [self.given[given], *([] if middle is None else [self.given[middle]]), self.families[woman][family]]
        separator = "·" if self.language == "zh" else " "
        if self.language != "ru":
            return Noun(separator.join(parts), woman=woman)
        cases = {case: " ".join(getattr(part, case) for part in parts) for case in ("gen", "dat", "acc")}
        return Noun(separator.join(parts), woman=woman, **cases)

    def pronoun(self, woman: bool) -> str:
        """Third person singular, nominative."""
        return {"en": ("he", "she"), "ru": ("он", "она"), "zh": ("他", "她")}[self.language][woman]

    def date(self, day: int, month: int, year: int) -> str:
        """A day as it stands in running text; months count from 0."""
        if self.language == "zh":
            return f"{year}年{month + 1}月{day}日"
        english, russian = things.MONTHS[month]
        return f"{day} {english} {year}" if self.language == "en" else f"{day} {russian} {year} года"

    def _of(self, english: str, russian: str, chinese: str) -> str:
        return {"en": english, "ru": russian, "zh": chinese}[self.language]

    def _given(self, woman: bool) -> Iterator[Noun]:
        for spelling in names.WOMEN if woman else names.MEN:
            if self.language == "ru":
                yield russian_given_name(spelling.ru, woman)
            else:
                yield Noun(self._of(*spelling), woman=woman)

    def _families(self, woman: bool) -> Iterator[Noun]:
        for native, spellings in ((False, names.FOREIGN_FAMILIES), (True, names.RUSSIAN_FAMILIES)):
            for english, russian, chinese in spellings:
                if self.language == "ru":
                    yield russian_family_name(russian, woman, native=native)
                elif not (native and woman):
                    yield Noun(self._of(english, russian, chinese))
                elif self.language == "en":
                    yield Noun(english + "a")
                else:
                    yield Noun(chinese[:-1] + "娃" if chinese.endswith("夫") else chinese + "娜")

    def _place(self, place: places.Place) -> Noun:
        if self.language == "en":
            return Noun(place.en, where=f"in {place.en}")
        if self.language == "zh":
            return Noun(place.zh, where=f"在{place.zh}")
        return Noun(place.ru, gen=place.ru_gen, where=place.ru_where)

    def _job(self, english: str, russian: str, instrumental: str, chinese: str) -> Noun:
        article = "an" if english[0] in "aeiou" else "a"
        one = f"{article} {english}" if self.language == "en" else f"一名{chinese}"
        return Noun(self._of(english, russian, chinese), one=one, ins=instrumental)

    def _companies(self) -> Iterator[str]:
        for first in things.rows(things.COMPANY_FIRST):
            for second in things.rows(things.COMPANY_SECOND):
                english, russian, chinese = zip(first, second, strict=True)
                yield self._of(" ".join(english), " ".join(russian), f"{''.join(chinese)}公司")

    def _spot(self, english: str, to: str, where: str, chinese: str) -> Noun:
        if self.language == "en":
            _, _, name = english.partition(" ")
            return Noun(name, where=english, to=f"to {name}")
        if self.language == "zh":
            return Noun(chinese, where=f"在{chinese}", to=f"去{chinese}")
        return Noun(where, where=where, to=to)

    def _thing(self, english: str, russian: str, accusative: str, measure: str, chinese: str) -> Noun:
        article = "an" if english[0] in "aeiou" else "a"
        one = f"{article} {english}" if self.language == "en" else measure + chinese
        return Noun(self._of(english, russian, chinese), one=one, the=f"the {english}", acc=accusative)

    def _container(self, english: str, to: str, where: str, chinese: str) -> Noun:
        if self.language == "en":
            return Noun(english, where=f"in the {english}", to=f"the {english}")
        if self.language == "zh":
            return Noun(chinese, where=f"在{chinese}里", to=f"{chinese}里")
        return Noun(where, where=where, to=to)


@cache
def lexicon(language: Language) -> Lexicon:
    """The words of a language, made once per process."""
    return Lexicon(language)
