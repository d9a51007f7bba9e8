"""Questions about the world: what is asked, how many facts it takes, the answer, and plausible wrong answers.

A question asks for an attribute of a person, of the person's mentor, or of the mentor's mentor. The number of hops
is the number of facts that must be put together: the city of birth takes one, its country two, the capital of that
country three, and each mentor on the way one more. No document states what takes more than one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from growtx.generator import KeyedGenerator
from growtx.microworld.config import MAX_HOPS, Language
from growtx.microworld.facts import in_language
from growtx.microworld.lexicon import Lexicon, lexicon
from growtx.microworld.nouns import Noun, sentence
from growtx.microworld.places import CITIES, COUNTRIES
from growtx.microworld.wordings import Wording
from growtx.microworld.world import FIRST_YEAR, NUM_YEARS, Group, Person, World

MAX_MENTORS = 2

Domain = Literal["cities", "countries", "jobs", "companies", "hobbies", "years", "people"]


@dataclass(frozen=True)
class Attribute:
    """Something that can be asked of a person."""

    hops: int
    domain: Domain
    find: Callable[[World, Person], int | None]
    wording: Wording


ATTRIBUTES: dict[str, Attribute] = {
    "birth_city": Attribute(
        1,
        "cities",
        lambda world, person: person.birth_city,
        ("In which city was {a} born?", "В каком городе родил[ся|ась] {a}?", "{a}出生在哪座城市？"),
    ),
    "birth_year": Attribute(
        1,
        "years",
        lambda world, person: person.year,
        ("In which year was {a} born?", "В каком году родил[ся|ась] {a}?", "{a}出生于哪一年？"),
    ),
    "study_city": Attribute(
        1,
        "cities",
        lambda world, person: person.study_city,
        (
            "In which city did {a} go to university?",
            "В каком городе {a} учил[ся|ась] в университете?",
            "{a}在哪座城市上的大学？",
        ),
    ),
    "job": Attribute(
        1,
        "jobs",
        lambda world, person: person.job,
        ("What is the profession of {a}?", "Какая профессия у {a.gen}?", "{a}的职业是什么？"),
    ),
    "company": Attribute(
        1,
        "companies",
        lambda world, person: person.company,
        ("Which company does {a} work for?", "В какой компании работает {a}?", "{a}在哪家公司工作？"),
    ),
    "hobby": Attribute(
        1,
        "hobbies",
        lambda world, person: person.hobby,
        ("What is the hobby of {a}?", "Какое увлечение у {a.gen}?", "{a}的爱好是什么？"),
    ),
    "mentor": Attribute(
        1,
        "people",
        lambda world, person: person.mentor,
        ("Who is the mentor of {a}?", "Кто наставник {a.gen}?", "{a}的导师是谁？"),
    ),
    "birth_country": Attribute(
        2,
        "countries",
        lambda world, person: world.country(person.birth_city),
        ("In which country was {a} born?", "В какой стране родил[ся|ась] {a}?", "{a}出生在哪个国家？"),
    ),
    "study_country": Attribute(
        2,
        "countries",
        lambda world, person: world.country(person.study_city),
        (
            "In which country did {a} go to university?",
            "В какой стране {a} учил[ся|ась] в университете?",
            "{a}在哪个国家上的大学？",
        ),
    ),
    "work_city": Attribute(
        2,
        "cities",
        lambda world, person: world.company_city(person.company),
        (
            "In which city is the employer of {a} based?",
            "В каком городе находится работодатель {a.gen}?",
            "{a}的工作单位在哪座城市？",
        ),
    ),
    "birth_capital": Attribute(
        3,
        "cities",
        lambda world, person: world.capital(world.country(person.birth_city)),
        (
            "What is the capital of the country where {a} was born?",
            "Какой город — столица страны, где родил[ся|ась] {a}?",
            "{a}出生的国家的首都是哪座城市？",
        ),
    ),
    "work_country": Attribute(
        3,
        "countries",
        lambda world, person: world.country(world.company_city(person.company)),
        (
            "In which country is the employer of {a} based?",
            "В какой стране находится работодатель {a.gen}?",
            "{a}的工作单位在哪个国家？",
        ),
    ),
}
# hops: attributes, and at how many mentors' remove to ask for them
_WAYS: dict[int, list[tuple[Attribute, int]]] = {
    hops: [(item, hops - item.hops) for item in ATTRIBUTES.values() if 0 <= hops - item.hops <= MAX_MENTORS]
    for hops in range(1, MAX_HOPS + 1)
}
_FIRST_BORN: Wording = (
    "Which of these people was born first?",
    "Кто из этих людей родился раньше всех?",
    "这些人当中谁出生最早？",
)
_MENTOR: Wording = ("the mentor of {a}", "наставник {a.gen}", "{a}的导师")


@dataclass(frozen=True)
class Asked:
    """A question about one person and its answer, in words."""

    question: str
    answer: str
    wrong: tuple[str, ...]  # three different wrong answers


def ask(world: World, language: Language, group: Group, hops: int, generator: KeyedGenerator) -> Asked:
    """A question of `hops` hops about someone of a group."""
    while True:
        person = world.person(group.first + generator.randbelow(group.size))
        attribute, num_mentors = generator.choice(_WAYS[hops])
        line = _line_of_mentors(world, person, num_mentors)
        if line is not None and attribute.find(world, line[-1]) is not None:
            return _ask(world, language, attribute, line, generator)


def _line_of_mentors(world: World, person: Person, length: int) -> list[Person] | None:
    line = [person]
    for _ in range(length):
        if line[-1].mentor is None:
            return None
        line.append(world.person(line[-1].mentor))
    return line


def _ask(
    world: World, language: Language, attribute: Attribute, line: list[Person], generator: KeyedGenerator
) -> Asked:
    words = lexicon(language)
    asked_of = world.name(language, line[0].number)
    for _ in line[1:]:
        asked_of = mentor_of(asked_of, language)
    question = sentence(in_language(attribute.wording, language), {"a": asked_of})
    answer = attribute.find(world, line[-1])
    assert answer is not None
    # A tempting mistake is among the wrong answers: stopping one mentor early.
    tempting = [attribute.find(world, person) for person in line[:-1]]
    wrong = [value for value in tempting if value is not None and value != answer][-1:]
    while len(wrong) < 3:
        value = _any_value(world, attribute.domain, line[-1], generator)
        if value != answer and value not in wrong:
            wrong.append(value)
    named = [in_words(world, words, attribute.domain, value) for value in (answer, *wrong)]
    return Asked(question, named[0], tuple(named[1:]))


def mentor_of(name: Noun, language: Language) -> Noun:
    """ "the mentor of NAME", to be used as a name itself."""
    words = in_language(_MENTOR, language).format(a=name)
    if language != "ru":
        return Noun(words, woman=False)
    _, rest = words.split(" ", 1)
    return Noun(words, woman=False, gen=f"наставника {rest}")


def _any_value(world: World, domain: Domain, person: Person, generator: KeyedGenerator) -> int:
    if domain == "people":
        first, size = world.group_of(person.number)
        return first + generator.randbelow(size)
    if domain == "years":
        return FIRST_YEAR + generator.randbelow(NUM_YEARS)
    if domain == "companies":
        return generator.choice(world.company_numbers)
    sizes = {"cities": len(CITIES), "countries": len(COUNTRIES)}
    return generator.randbelow(sizes[domain] if domain in sizes else len(getattr(lexicon("en"), domain)))


def in_words(world: World, words: Lexicon, domain: Domain, value: int) -> str:
    """An answer as it is written when nothing stands around it."""
    if domain == "years":
        return str(value)
    if domain == "people":
        return str(world.name(words.language, value))
    named: str = getattr(words, domain)[value]
    return str(named)


def ask_oldest(world: World, language: Language, group: Group, generator: KeyedGenerator) -> Asked:
    """Which of four people was born first?"""
    while True:
        people = [world.person(group.first + number) for number in generator.sample_range(group.size, 4)]
        years = sorted(person.year for person in people)
        if years[0] != years[1]:
            break
    people.sort(key=lambda person: person.year)
    names = [str(world.name(language, person.number)) for person in people]
    return Asked(in_language(_FIRST_BORN, language), names[0], tuple(names[1:]))
