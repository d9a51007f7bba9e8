"""Microworld: a small generated world, described in English, Russian and Chinese, with questions about it.

After Allen-Zhu and Li, "Physics of Language Models: Part 3.1, Knowledge Storage and Extraction" (arXiv:2309.14316):
people have a name and a few random facts (birth, university, work, hobby, mentor), and every fact has several
wordings in every language. Names, cities, countries and jobs are real words; which city lies in which country is
true; everything else is drawn from the seed. It is large enough to need a language model and small enough to learn
in minutes, and because we know every fact, we know what a model has understood.

**Who is asked about where.** People fall into three groups.

| group | described in the text | asked about in the text | asked about in held-out sets |
|---|---|---|---|
| known | yes | yes | no |
| held out | yes | never | yes: recall, hops_k, compare, translation |
| strangers | never | never | yes: reading, where the answer stands in the context |

So a right answer about a held-out person shows knowledge that was taken from descriptions, not a remembered answer.
Mentors belong to the group of the person; puzzles and stories use given names only, which name nobody of the world.

**What needs depth.** `recall` asks one fact; `hops_k` needs k facts put together (the capital of the country of the
birthplace of the mentor of X), which no document states as one; `compare` needs four. In a puzzle the facts
stand in the text: `chain_k` follows k links among shuffled statements of constant length, `track`, `order` and
`count` work on what was just read.

**Documents** (`MicroworldConfig.shares`): biography, geography (cities, capitals, companies), question and choice
(about known people), reading, story, puzzle, translation. Document k is a pure function of (configuration, k).

Reading order: `world`, `wordings`, `nouns`, `corpus`, `exercises`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import resources

from growtx.microworld.config import LANGUAGES, Language, MicroworldConfig
from growtx.microworld.corpus import Corpus
from growtx.microworld.exercises import TASKS
from growtx.microworld.forms import ExtractiveQA, MultipleChoice, Question, Translation, prompt, target
from growtx.microworld.held_out import questions

__all__ = [
    "LANGUAGES",
    "TASKS",
    "ExtractiveQA",
    "Language",
    "MicroworldConfig",
    "MultipleChoice",
    "Question",
    "Translation",
    "documents",
    "generator_fingerprint",
    "prompt",
    "questions",
    "target",
]


def documents(config: MicroworldConfig) -> Iterator[str]:
    """The corpus of a configuration, document after document."""
    return Corpus(config).documents()


def generator_fingerprint() -> str:
    """sha256 of the code and the word lists that make the text: what was packed with older ones is packed again."""
    digest = hashlib.sha256()
    for file in sorted(resources.files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
