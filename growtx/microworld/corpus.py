"""The corpus: a document is a pure function of (configuration, its number), so any part can be made alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np

from growtx.generator import KeyedGenerator, weighted_round_robin
from growtx.microworld.config import Kind, Language, MicroworldConfig
from growtx.microworld.exercises import RECALL_TASKS, multiple_choice, puzzled, reading, recalled, translation
from growtx.microworld.facts import Describer, facts_of, join
from growtx.microworld.forms import open_prompt, shown, solved
from growtx.microworld.lexicon import lexicon
from growtx.microworld.places import CITIES, COUNTRIES
from growtx.microworld.puzzles import PUZZLES
from growtx.microworld.stories import tell
from growtx.microworld.world import World

DEFAULT_BYTES = 8_000_000
DOCUMENTS_PER_PLAN = 1024
STRIDE = 2_654_435_761  # a prime: steps of it visit everybody before anybody twice
OPEN_TASKS = [task for task in RECALL_TASKS if task != "compare"]  # which of what? needs the choices


class Corpus:
    """Writes the documents of a configuration."""

    def __init__(self, config: MicroworldConfig) -> None:
        self.config, self.world = config, World(config)
        self._describers = {
            language: Describer(self.world, language, config.paraphrases) for language in config.languages
        }
        self._kinds = list(config.document_shares)
        self._weights = list(config.document_shares.values())
        self._writers: dict[Kind, Callable[[Language, int, KeyedGenerator], str]] = {
            "biography": self._biography,
            "geography": self._geography,
            "question": self._questions,
            "choice": self._choices,
            "reading": self._reading,
            "story": self._story,
            "puzzle": self._puzzle,
            "translation": self._translation,
        }

    def documents(self) -> Iterator[str]:
        """All documents, up to the size that the configuration asks for."""
        config = self.config
        target_bytes = DEFAULT_BYTES if config.target_bytes is None else config.target_bytes
        num_documents = num_bytes = 0
        for kind, turn in self._plan():
            yield (text := self.write(kind, turn))
            num_documents, num_bytes = num_documents + 1, num_bytes + len(text.encode())
            if num_documents == config.num_documents or (config.num_documents is None and num_bytes >= target_bytes):
                return

    def write(self, kind: Kind, turn: int) -> str:
        """Document number `turn` of a kind, whatever the size of the corpus."""
        language = self.config.languages[turn % len(self.config.languages)]
        return self._writers[kind](language, turn, KeyedGenerator(self.config.seed, kind, turn))

    def _plan(self) -> Iterator[tuple[Kind, int]]:
        for start in count(0, DOCUMENTS_PER_PLAN):
            members, numbers = weighted_round_robin(np.arange(start, start + DOCUMENTS_PER_PLAN), self._weights)
            for member, number in zip(members.tolist(), numbers.tolist(), strict=True):
                yield self._kinds[member], number

    def _biography(self, _: Language, turn: int, generator: KeyedGenerator) -> str:
        """Everybody is described once in every language before anybody is described again."""
        languages = self.config.languages
        lap, position = divmod(turn, self.world.num_people)
        person = self.world.person(position * STRIDE % self.world.num_people)
        language = languages[(lap + person.number) % len(languages)]
        return join(
            self._describers[language].biography(person, generator, generator.shuffled(facts_of(person))), language
        )

    def _geography(self, language: Language, _: int, generator: KeyedGenerator) -> str:
        describer, companies, sentences = self._describers[language], self.world.company_numbers, []
        for _ in range(3 + generator.randbelow(4)):
            subject = generator.randbelow(5)
            if subject < 2:
                sentences.append(describer.city(generator.randbelow(len(CITIES)), generator))
            elif subject == 2:
                sentences.append(describer.capital(generator.randbelow(len(COUNTRIES)), generator))
            else:
                sentences.append(describer.company(generator.choice(companies), generator))
        return join(sentences, language)

    def _questions(self, language: Language, _: int, generator: KeyedGenerator) -> str:
        lines = []
        for _ in range(2 + generator.randbelow(4)):
            asked = recalled(self.world, generator.choice(OPEN_TASKS), language, self.world.known, generator)
            lines.append(shown(open_prompt(asked.question, language), asked.answer))
        return "\n".join(lines)

    def _choices(self, language: Language, _: int, generator: KeyedGenerator) -> str:
        exercises = []
        for _ in range(1 + generator.randbelow(3)):
            task = generator.choice(RECALL_TASKS)
            asked = recalled(self.world, task, language, self.world.known, generator)
            exercises.append(solved(multiple_choice(task, language, asked, generator), language))
        return "\n\n".join(exercises)

    def _reading(self, language: Language, _: int, generator: KeyedGenerator) -> str:
        return solved(reading(self._describers[language], self.world.known, generator), language)

    def _story(self, language: Language, _: int, generator: KeyedGenerator) -> str:
        return join(tell(lexicon(language), generator), language)

    def _puzzle(self, language: Language, _: int, generator: KeyedGenerator) -> str:
        """A puzzle, with its choices or with the answer in words."""
        exercise = puzzled(generator.choice(PUZZLES), language, generator)
        if generator.randbelow(2):
            return solved(exercise, language)
        answer = exercise.choices[exercise.answer_index]
        return f"{exercise.context}\n{shown(open_prompt(exercise.question, language), answer)}"

    def _translation(self, _: Language, turn: int, generator: KeyedGenerator) -> str:
        languages = self.config.languages
        source, target = generator.sample_range(len(languages), 2)
        pair = languages[source], languages[target]
        exercise = translation(self.world, pair, self.world.known, self.config.seed, "passage", turn)
        return solved(exercise, pair[1])
