"""The corpus: a document is a pure function of (configuration, its number), so any part can be made alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np

from growtx.generator import Draws, turns
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
        self._writers: dict[Kind, Callable[[Language, int, Draws], str]] = {
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
        return self._writers[kind](language, turn, Draws(self.config.seed, kind, turn))

    def _plan(self) -> Iterator[tuple[Kind, int]]:
        for start in count(0, DOCUMENTS_PER_PLAN):
            members, numbers = turns(np.arange(start, start + DOCUMENTS_PER_PLAN), self._weights)
            for member, number in zip(members.tolist(), numbers.tolist(), strict=True):
                yield self._kinds[member], number

    def _biography(self, _: Language, turn: int, draw: Draws) -> str:
        """Everybody is described once in every language before anybody is described again."""
        languages = self.config.languages
        lap, position = divmod(turn, self.world.num_people)
        person = self.world.person(position * STRIDE % self.world.num_people)
        language = languages[(lap + person.number) % len(languages)]
        return join(self._describers[language].biography(person, draw, draw.shuffled(facts_of(person))), language)

    def _geography(self, language: Language, _: int, draw: Draws) -> str:
        describer, companies, sentences = self._describers[language], self.world.company_numbers, []
        for _ in range(3 + draw.below(4)):
            subject = draw.below(5)
            if subject < 2:
                sentences.append(describer.city(draw.below(len(CITIES)), draw))
            elif subject == 2:
                sentences.append(describer.capital(draw.below(len(COUNTRIES)), draw))
            else:
                sentences.append(describer.company(draw.pick(companies), draw))
        return join(sentences, language)

    def _questions(self, language: Language, _: int, draw: Draws) -> str:
        lines = []
        for _ in range(2 + draw.below(4)):
            asked = recalled(self.world, draw.pick(OPEN_TASKS), language, self.world.known, draw)
            lines.append(shown(open_prompt(asked.question, language), asked.answer))
        return "\n".join(lines)

    def _choices(self, language: Language, _: int, draw: Draws) -> str:
        exercises = []
        for _ in range(1 + draw.below(3)):
            task = draw.pick(RECALL_TASKS)
            asked = recalled(self.world, task, language, self.world.known, draw)
            exercises.append(solved(multiple_choice(task, language, asked, draw), language))
        return "\n\n".join(exercises)

    def _reading(self, language: Language, _: int, draw: Draws) -> str:
        return solved(reading(self._describers[language], self.world.known, draw), language)

    def _story(self, language: Language, _: int, draw: Draws) -> str:
        return join(tell(lexicon(language), draw), language)

    def _puzzle(self, language: Language, _: int, draw: Draws) -> str:
        """A puzzle, with its choices or with the answer in words."""
        exercise = puzzled(draw.pick(PUZZLES), language, draw)
        if draw.below(2):
            return solved(exercise, language)
        answer = exercise.choices[exercise.answer_index]
        return f"{exercise.context}\n{shown(open_prompt(exercise.question, language), answer)}"

    def _translation(self, _: Language, turn: int, draw: Draws) -> str:
        languages = self.config.languages
        source, target = draw.distinct(len(languages), 2)
        pair = languages[source], languages[target]
        exercise = translation(self.world, pair, self.world.known, self.config.seed, "passage", turn)
        return solved(exercise, pair[1])
