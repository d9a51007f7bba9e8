from __future__ import annotations

from growtx.generator import KeyedGenerator
from growtx.microworld.lexicon import lexicon
from growtx.microworld.stories import tell


def test_equal_draws_tell_the_same_story_in_every_language() -> None:
    english, chinese = lexicon("en"), lexicon("zh")
    for number in range(30):
        told = [" ".join(tell(words, KeyedGenerator(number))) for words in (english, chinese)]
        heroes = [index for index, name in enumerate(english.given) if f"{name} " in told[0]]
        assert heroes
        assert all(chinese.given[index] in told[1] for index in heroes)


def test_no_event_happens_twice_in_a_story() -> None:
    for number in range(100):
        told = tell(lexicon("en"), KeyedGenerator(number))
        assert len(set(told)) == len(told)
