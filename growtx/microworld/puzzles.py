"""Puzzles whose answer stands in the text before them, so that nothing needs to be remembered, only worked out.

`chain_k` follows k links of "manager of" among shuffled statements; whatever k, text length and choices are alike,
so a difference between k is a difference in depth. `track` follows things between places, `order` sorts people by
age from comparisons of neighbours, `count` counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from growtx.generator import KeyedGenerator
from growtx.microworld.config import MAX_HOPS, Language
from growtx.microworld.facts import in_language, join
from growtx.microworld.lexicon import lexicon
from growtx.microworld.nouns import Noun, sentence
from growtx.microworld.wordings import Wording

NUM_LINKS = 5  # of each of the two chains

_MANAGER: tuple[Wording, ...] = (
    ("{b} is the manager of {a}.", "{b} — начальник {a.gen}.", "{b}是{a}的上司。"),
    ("{a} reports to {b}.", "{a} подчиняется {b.dat}.", "{a}归{b}管。"),
)
_WHO_MANAGES: Wording = ("Who is the manager of {a}?", "Кто начальник {a.gen}?", "{a}的上司是谁？")
_MANAGER_OF: Wording = ("the manager of {a}", "начальника {a.gen}", "{a}的上司")

_PUT: tuple[Wording, ...] = (
    ("{a} puts the {thing} into {place.to}.", "{a} кладёт {thing.acc} {place.to}.", "{a}把{thing}放进{place.to}。"),
    (
        "Into {place.to} {a} puts the {thing}.",
        "{place.to} {a} кладёт {thing.acc}.",
        "{a}往{place.to}放进了{thing}。",
    ),
)
_WHERE: Wording = ("Where is the {thing} now?", "Где теперь {thing}?", "{thing}现在在哪里？")

_LIVES: tuple[Wording, ...] = (
    ("{a} lives {city.where}.", "{a} живёт {city.where}.", "{a}住在{city}。"),
    ("The home of {a} is {city.where}.", "Дом {a.gen} — {city.where}.", "{a}的家在{city}。"),
)
_HOW_MANY: Wording = (
    "How many of these people live {city.where}?",
    "Сколько из этих людей живёт {city.where}?",
    "这些人当中有几个人住在{city}？",
)

_OLDER: tuple[Wording, ...] = (
    ("{a} is older than {b}.", "{a} старше {b.gen}.", "{a}比{b}年长。"),
    ("{b} is younger than {a}.", "{b} моложе {a.gen}.", "{b}比{a}年轻。"),
)
_EXTREME: tuple[Wording, ...] = (
    ("Who is the oldest?", "Кто старше всех?", "谁年纪最大？"),
    ("Who is the youngest?", "Кто моложе всех?", "谁年纪最小？"),
)


@dataclass(frozen=True)
class Puzzle:
    """A text, a question about it, the answer, and three wrong answers."""

    context: str
    question: str
    answer: str
    wrong: tuple[str, ...]


def chain(language: Language, hops: int, generator: KeyedGenerator) -> Puzzle:
    """Who is the manager of the manager of ... (`hops` times) X?"""
    people = generator.sample(lexicon(language).given, 2 * (NUM_LINKS + 1))
    chains = people[: NUM_LINKS + 1], people[NUM_LINKS + 1 :]
    links = generator.shuffled([link for line in chains for link in pairwise(line)])
    statements = [_say(_MANAGER, language, generator, a=a, b=b) for a, b in links]
    start = generator.randbelow(NUM_LINKS + 1 - hops)
    asked_of: Noun = chains[0][start]
    for _ in range(hops - 1):
        words = in_language(_MANAGER_OF, language).format(a=asked_of)
        asked_of = Noun(words, gen=words)
    question = sentence(in_language(_WHO_MANAGES, language), {"a": asked_of})
    answer = chains[0][start + hops]
    wrong = [person for person in chains[0] if person not in (answer, chains[0][start])]
    return Puzzle(
        join(statements, language), question, answer, (*generator.sample(wrong, 2), generator.choice(chains[1]))
    )


def track(language: Language, generator: KeyedGenerator) -> Puzzle:
    """Where is one of three things, each of which was moved?"""
    words = lexicon(language)
    things, places = generator.sample(words.things, 3), generator.sample(words.containers, 4)
    people = generator.sample(words.given, 3)
    moves = generator.shuffled([thing for thing in things for _ in range(2)])
    statements, now = [], dict[Noun, Noun]()
    for thing in moves:
        now[thing] = generator.choice([place for place in places if place is not now.get(thing)])
        statements.append(_say(_PUT, language, generator, a=generator.choice(people), thing=thing, place=now[thing]))
    asked = generator.choice(things)
    question = sentence(in_language(_WHERE, language), {"thing": asked})
    wrong = tuple(place.where for place in places if place is not now[asked])
    return Puzzle(join(statements, language), question, now[asked].where, wrong)


def count(language: Language, generator: KeyedGenerator) -> Puzzle:
    """How many of six people live in a city?"""
    words = lexicon(language)
    people, cities = generator.sample(words.given, 6), generator.sample(words.cities, 3)
    homes = [generator.choice(cities) for _ in people]
    statements = [
        _say(_LIVES, language, generator, a=person, city=city) for person, city in zip(people, homes, strict=True)
    ]
    question = sentence(in_language(_HOW_MANY, language), {"city": cities[0]})
    answer = sum(city is cities[0] for city in homes)
    wrong = generator.sample([number for number in range(len(people)) if number != answer], 3)
    return Puzzle(join(statements, language), question, str(answer), tuple(map(str, wrong)))


def order(language: Language, generator: KeyedGenerator) -> Puzzle:
    """Who of five people is the oldest or the youngest, given the order of neighbours?"""
    people = generator.sample(lexicon(language).given, 5)
    statements = [_say(_OLDER, language, generator, a=older, b=younger) for older, younger in pairwise(people)]
    youngest = generator.randbelow(2)
    question = in_language(_EXTREME[youngest], language)
    answer = people[-1 if youngest else 0]
    wrong = generator.sample([person for person in people if person is not answer], 3)
    return Puzzle(join(generator.shuffled(statements), language), question, answer, tuple(wrong))


def puzzle(task: str, language: Language, generator: KeyedGenerator) -> Puzzle:
    """The puzzle of a task name: chain_1 .. chain_4, track, count, order."""
    if task.startswith("chain_"):
        return chain(language, int(task.removeprefix("chain_")), generator)
    return {"track": track, "count": count, "order": order}[task](language, generator)


PUZZLES = (*(f"chain_{hops}" for hops in range(1, MAX_HOPS + 1)), "track", "count", "order")


def _say(wordings: tuple[Wording, ...], language: Language, generator: KeyedGenerator, **slots: Noun) -> str:
    return sentence(in_language(generator.choice(wordings), language), slots)
