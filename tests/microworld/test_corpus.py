from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from growtx.microworld import documents
from growtx.microworld.config import DEFAULT_SHARES, LANGUAGES, MicroworldConfig
from growtx.microworld.corpus import Corpus
from growtx.microworld.lexicon import lexicon

SMALL = MicroworldConfig(num_people=60, num_documents=600)
SCRIPTS = {"en": "[A-Za-z]", "ru": "[А-Яа-яЁё]", "zh": "[一-鿿]"}


def _digest(texts: Iterator[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def test_equal_configurations_give_equal_text_in_every_process() -> None:
    program = (
        "import hashlib; from growtx.microworld import MicroworldConfig, documents;"
        "print(hashlib.sha256('\\0'.join(documents(MicroworldConfig(num_people=60, num_documents=600)))"
        ".encode()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == _digest(documents(SMALL))


def test_another_seed_is_another_world() -> None:
    assert _digest(documents(SMALL)) != _digest(documents(SMALL.model_copy(update={"seed": 1})))


def test_a_larger_corpus_begins_with_the_smaller_one() -> None:
    larger = MicroworldConfig(num_people=60, target_bytes=1_000_000)
    assert list(islice(documents(larger), 600)) == list(documents(SMALL))


def test_the_corpus_is_as_large_as_asked() -> None:
    assert len(list(documents(SMALL))) == 600
    sizes = [len(text.encode()) for text in documents(MicroworldConfig(target_bytes=50_000))]
    assert sum(sizes) >= 50_000 > sum(sizes[:-1])


def test_kinds_have_their_share_at_every_length() -> None:
    counts: Counter[str] = Counter()
    for number, (kind, turn) in enumerate(islice(Corpus(MicroworldConfig())._plan(), 2000), 1):
        assert turn == counts[kind]
        counts[kind] += 1
        assert all(abs(counts[name] - number * share) < len(DEFAULT_SHARES) for name, share in DEFAULT_SHARES.items())


def test_everybody_is_described_in_every_language_before_anybody_is_described_again() -> None:
    corpus = Corpus(MicroworldConfig(num_people=60, shares={"biography": 1.0}))
    texts = [corpus.write("biography", turn) for turn in range(60 * len(LANGUAGES))]
    for language in LANGUAGES:
        for number in range(60):
            person = corpus.world.person(number)
            born = lexicon(language).date(person.day, person.month, person.year)
            assert sum(born in text for text in texts) == 1, (language, number)


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_language_is_written_in_its_own_script(language: str) -> None:
    config = MicroworldConfig(languages=(language,), num_people=60, num_documents=300)
    others = "|".join(script for other, script in SCRIPTS.items() if other != language)
    for text in documents(config):
        assert not re.search(others, re.sub(r"^[A-D]\. |[A-D]$", "", text, flags=re.MULTILINE)), text


def test_nobody_who_is_held_out_is_ever_asked_about() -> None:
    corpus = Corpus(MicroworldConfig(num_people=60))
    world = corpus.world
    hidden = [str(world.name(language, n)) for language in LANGUAGES for n in range(world.held_out.first, 120)]
    pattern = re.compile("|".join(map(re.escape, hidden)))
    for kind in ("question", "choice", "reading", "puzzle", "translation", "story", "geography"):
        for turn in range(150):
            text = corpus.write(kind, turn)
            assert not pattern.search(text), text


def test_strangers_are_never_mentioned() -> None:
    corpus = Corpus(MicroworldConfig(num_people=60))
    strangers = [str(corpus.world.name(language, n)) for language in LANGUAGES for n in range(60, 120)]
    pattern = re.compile("|".join(map(re.escape, strangers)))
    assert not any(pattern.search(text) for text in islice(corpus.documents(), 1500))


def test_biographies_use_no_more_wordings_than_configured() -> None:
    shares = {"biography": 1.0}
    one = MicroworldConfig(num_people=40, paraphrases=1, languages=("en",), shares=shares, num_documents=200)
    verbs = Counter(
        re.sub(r".*\b(studied|graduated|holds|spent the|awarded)\b.*", r"\1", text) for text in documents(one)
    )
    assert set(verbs) == {"studied"}
