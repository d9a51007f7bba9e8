"""Questions of every task, made from a world for a group of its people.

Documents draw them for known people, held-out sets for held-out people and strangers, from streams of their own.
What is made depends on the numbers drawn and never on the language: equal draws say the same thing in each language.
"""

from __future__ import annotations

from growtx.generator import KeyedGenerator
from growtx.microworld.asking import ATTRIBUTES, Asked, ask, ask_oldest
from growtx.microworld.config import MAX_HOPS, Language
from growtx.microworld.facts import Describer, facts_of, in_language, join
from growtx.microworld.forms import ExtractiveQA, MultipleChoice, Translation
from growtx.microworld.lexicon import lexicon
from growtx.microworld.nouns import sentence
from growtx.microworld.puzzles import PUZZLES, puzzle
from growtx.microworld.stories import PLOT, tell
from growtx.microworld.wordings import Fact
from growtx.microworld.world import Group, World

RECALL_TASKS = ("recall", *(f"hops_{hops}" for hops in range(2, MAX_HOPS + 1)), "compare")
TASKS = (*RECALL_TASKS, *PUZZLES, "reading", "translation")

# What can be asked about a text: attribute, the fact that states it, the slot with the answer, and the forms of the
# noun that a text may use ("" is the dictionary form; the first that stands in the text is the best answer).
_READABLE: tuple[tuple[str, Fact, str, tuple[str, ...]], ...] = (
    ("birth_city", "birth", "city", ("", "gen", "where")),
    ("study_city", "study", "study", ("", "gen")),
    ("company", "work", "company", ("",)),
    ("job", "work", "job", ("", "ins")),
    ("hobby", "hobby", "hobby", ("",)),
    ("mentor", "mentor", "b", ("", "gen")),
)


def recalled(world: World, task: str, language: Language, group: Group, generator: KeyedGenerator) -> Asked:
    """A question that only memory answers: recall (one hop), hops_2 .. hops_4, compare."""
    if task == "compare":
        return ask_oldest(world, language, group, generator)
    hops = 1 if task == "recall" else int(task.removeprefix("hops_"))
    return ask(world, language, group, hops, generator)


def multiple_choice(
    task: str, language: Language, asked: Asked, generator: KeyedGenerator, context: str = ""
) -> MultipleChoice:
    """Put the right answer among the wrong ones."""
    choices = generator.shuffled(asked.wrong)
    answer_index = generator.randbelow(len(choices) + 1)
    choices.insert(answer_index, asked.answer)
    return MultipleChoice(f"microworld/{task}/{language}", asked.question, tuple(choices), answer_index, context)


def puzzled(task: str, language: Language, generator: KeyedGenerator) -> MultipleChoice:
    """A puzzle as multiple choice."""
    made = puzzle(task, language, generator)
    asked = Asked(made.question, made.answer, made.wrong)
    return multiple_choice(task, language, asked, generator, made.context)


def reading(describer: Describer, group: Group, generator: KeyedGenerator) -> ExtractiveQA:
    """A text about three people and a question about one of them, answered by words of the text."""
    people = [describer.world.person(group.first + number) for number in generator.sample_range(group.size, 3)]
    asked_of = people[0]
    attribute, asked_fact, slot, forms = generator.choice([row for row in _READABLE if row[1] in facts_of(asked_of)])
    parts = []
    for person in people:
        facts = generator.sample(facts_of(person), 3)
        if person is asked_of and asked_fact not in facts:
            facts[generator.randbelow(3)] = asked_fact
        parts.append(join(describer.biography(person, generator, facts), describer.language))
    context = join(generator.shuffled(parts), describer.language)
    slots = describer.slots(asked_of)
    question = sentence(in_language(ATTRIBUTES[attribute].wording, describer.language), slots)
    candidates = [str(getattr(slots[slot], form, "") if form else slots[slot]) for form in forms]
    answers = tuple(dict.fromkeys(form for form in candidates if form and form in context))
    assert answers, (context, candidates)
    return ExtractiveQA(f"microworld/reading/{describer.language}", context, question, answers)


def translation(world: World, pair: tuple[Language, Language], group: Group, *key: int | str) -> Translation:
    """Two sentences about a person, or the end of a story, in two languages.

    Args:
        pair: language of the source and of the translation.
        group: people to write about.
        key: of the random numbers; both sides are made with the same.
    """
    source, target = (_passage(world, language, group, KeyedGenerator(*key)) for language in pair)
    return Translation(f"microworld/translation/{pair[0]}-{pair[1]}", source, target, *pair)


def _passage(world: World, language: Language, group: Group, generator: KeyedGenerator) -> str:
    if generator.randbelow(3) == 0:
        first = generator.randbelow(len(PLOT) - 1)
        return join(tell(lexicon(language), generator, PLOT[first : first + 2]), language)
    person = world.person(group.first + generator.randbelow(group.size))
    describer = Describer(world, language, paraphrases=1 + generator.randbelow(3))
    return join(describer.biography(person, generator, generator.sample(facts_of(person), 2)), language)
