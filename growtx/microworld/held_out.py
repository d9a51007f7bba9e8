"""Held-out questions: what a model is measured with. See the package for who is asked about where."""

from __future__ import annotations

from growtx.exceptions import ConfigError
from growtx.generator import KeyedGenerator
from growtx.microworld.config import Language, MicroworldConfig
from growtx.microworld.exercises import RECALL_TASKS, TASKS, multiple_choice, puzzled, reading, recalled, translation
from growtx.microworld.facts import Describer
from growtx.microworld.forms import MultipleChoice, Question
from growtx.microworld.world import World

MAX_ATTEMPTS = 20  # to find a question that was not asked before


def questions(config: MicroworldConfig, task: str, language: Language, num_questions: int) -> list[Question]:
    """Held-out questions, all different, the same for equal arguments; more of them begin with the same ones.

    Args:
        config: the world that the model was trained on; its size and shares play no part.
        task: one of `TASKS`.
        language: of the questions; for `translation` the target, from English (into English: from the world's
            first other language).
        num_questions: how many.

    Raises:
        ConfigError: unknown task, a language that the world does not have, or more questions than there are.
    """
    if task not in TASKS:
        raise ConfigError(f"The microworld has no task {task!r}", f"Use one of {', '.join(TASKS)}")
    if language not in config.languages:
        raise ConfigError(f"This microworld has no language {language!r}", f"Use one of {', '.join(config.languages)}")
    others = [other for other in ("en", *config.languages) if other in config.languages and other != language]
    if task == "translation" and not others:
        raise ConfigError(
            "A microworld of one language has no translations",
            "Leave its translation tasks out, or evaluate a model that was grown on several languages",
        )
    world, pair = World(config), ((others or [language])[0], language)
    found: dict[object, Question] = {}
    attempts = 0
    while len(found) < num_questions:
        if attempts > MAX_ATTEMPTS * (len(found) + 10):
            problem = f"There are not {num_questions} different questions of task {task} in this microworld"
            raise ConfigError(
                problem,
                f"Ask for at most {len(found)} (--limit {len(found)} of `growtx evaluate`, benchmarks.limit of a run)",
            )
        question = _question(world, config.paraphrases, task, pair, attempts)
        found.setdefault(_asked(question), question)
        attempts += 1
    return list(found.values())


def _asked(question: Question) -> object:
    """What makes a question another one: other wrong answers do not, unless the question is about the choices."""
    if isinstance(question, MultipleChoice) and "compare" not in question.task:
        return question.context, question.question
    return frozenset(question.choices) if isinstance(question, MultipleChoice) else question


def _question(world: World, paraphrases: int, task: str, pair: tuple[Language, Language], number: int) -> Question:
    key = (world.seed, "held out", task, number)
    if task == "translation":
        return translation(world, pair, world.held_out, *key)
    language, generator = pair[1], KeyedGenerator(*key)
    if task == "reading":
        return reading(Describer(world, language, paraphrases), world.strangers, generator)
    if task in RECALL_TASKS:
        return multiple_choice(task, language, recalled(world, task, language, world.held_out, generator), generator)
    return puzzled(task, language, generator)
