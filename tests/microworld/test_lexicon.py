from __future__ import annotations

import pytest

from growtx.microworld.config import LANGUAGES, Language
from growtx.microworld.lexicon import NUM_COMPANIES, NUM_FAMILIES, NUM_GIVEN, NUM_WOMEN, lexicon
from growtx.microworld.nouns import Noun
from growtx.microworld.places import CAPITALS, CITIES, COUNTRIES

LISTS = ["given", "cities", "countries", "jobs", "hobbies", "companies", "spots", "things", "containers", "foods"]
LISTS += ["weather", "weekdays"]


@pytest.mark.parametrize("name", LISTS)
def test_every_list_means_the_same_in_every_language_and_repeats_nothing(name: str) -> None:
    lists = [getattr(lexicon(language), name) for language in LANGUAGES]
    assert len({len(words) for words in lists}) == 1
    for words in lists:
        assert len(set(words)) == len(words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sizes_that_the_world_counts_with_hold(language: Language) -> None:
    words = lexicon(language)
    assert len(words.given) == NUM_GIVEN == 2 * NUM_WOMEN
    assert len(words.families[True]) == len(words.families[False]) == NUM_FAMILIES
    assert len(words.companies) == NUM_COMPANIES


def test_scripts_are_not_mixed() -> None:
    for language, low, high in (("ru", "Ѐ", "ӿ"), ("zh", "一", "鿿")):
        words = lexicon(language)
        for word in [*words.given, *words.families[True], *words.families[False], *words.companies, *words.cities]:
            assert all(low <= letter <= high for letter in word if letter.isalpha()), word


def test_russian_places_have_their_case_and_preposition() -> None:
    words = lexicon("ru")
    places = {str(place): place for place in [*words.cities, *words.countries]}
    assert (places["Париж"].gen, places["Париж"].where) == ("Парижа", "в Париже")
    assert places["Франция"].where == "во Франции"
    assert places["Осло"].where == "в Осло"
    assert all(place.where.startswith(("в ", "во ")) for place in places.values())


def test_every_country_has_its_capital_among_its_cities() -> None:
    assert [CITIES[capital].country for capital in CAPITALS] == list(range(len(COUNTRIES)))


def test_women_have_their_own_family_names_where_the_language_has_them() -> None:
    numbers = {language: lexicon(language).families[False].index(Noun(name)) for language, name in IVANOV.items()}
    assert len(set(numbers.values())) == 1
    found = {language: str(lexicon(language).families[True][numbers[language]]) for language in LANGUAGES}
    assert found == {"en": "Ivanova", "ru": "Иванова", "zh": "伊万诺娃"}


IVANOV: dict[Language, str] = {"en": "Ivanov", "ru": "Иванов", "zh": "伊万诺夫"}


def test_full_names_decline_as_a_whole() -> None:
    words = lexicon("ru")
    given, middle, family = Noun("Мария"), Noun("Анна"), Noun("Иванов")
    name = words.person(words.given.index(given), words.given.index(middle), words.families[False].index(family))
    assert (name, name.gen, name.dat) == ("Мария Анна Иванова", "Марии Анны Ивановой", "Марии Анне Ивановой")


def test_dates_are_written_as_people_write_them() -> None:
    dates = [lexicon(language).date(7, 4, 1961) for language in LANGUAGES]
    assert dates == ["7 May 1961", "7 мая 1961 года", "1961年5月7日"]
