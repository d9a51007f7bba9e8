from __future__ import annotations

import re
from collections import Counter

import pytest

from growtx.exceptions import ConfigError
from growtx.microworld import TASKS, MicroworldConfig, documents, questions
from growtx.microworld.config import LANGUAGES, Language
from growtx.microworld.exercises import RECALL_TASKS
from growtx.microworld.forms import ExtractiveQA, MultipleChoice, Translation
from growtx.microworld.world import Group, World

CONFIG = MicroworldConfig(num_people=160)
WORLD = World(CONFIG)


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_different_and_more_of_them_begin_with_the_same_ones(task: str) -> None:
    for language in LANGUAGES:
        many = questions(CONFIG, task, language, 40)
        assert len(set(many)) == 40
        assert questions(CONFIG, task, language, 10) == many[:10]
        assert {question.task for question in many} == {many[0].task}


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("reading", "translation")])
def test_every_letter_is_right_equally_often(task: str) -> None:
    found = questions(CONFIG, task, "en", 120)
    letters = Counter(question.answer_index for question in found if isinstance(question, MultipleChoice))
    assert sum(letters.values()) == 120
    assert all(15 <= letters[letter] <= 48 for letter in range(4))


def _names(group: Group, language: Language) -> list[str]:
    """The names of a group in the forms that questions use."""
    names = [WORLD.name(language, number) for number in range(group.first, group.first + group.size)]
    return [form for name in names for form in (str(name), getattr(name, "gen", str(name)))]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", RECALL_TASKS)
def test_memory_is_asked_about_held_out_people_only(task: str, language: Language) -> None:
    known, held_out = _names(WORLD.known, language), _names(WORLD.held_out, language)
    for question in questions(CONFIG, task, language, 30):
        assert isinstance(question, MultipleChoice)
        text = f"{question.question} {question.choices}"
        assert not any(name in text for name in known)
        assert any(name in text for name in held_out)


@pytest.mark.parametrize("task", RECALL_TASKS)
def test_no_question_comes_back_with_other_wrong_answers(task: str) -> None:
    found = [question for question in questions(CONFIG, task, "en", 60) if isinstance(question, MultipleChoice)]
    assert len({question.choices if task == "compare" else question.question for question in found}) == 60


def test_reading_is_about_people_whom_the_text_never_mentions() -> None:
    text = "\n".join(documents(MicroworldConfig(num_people=160, num_documents=500)))
    for question in questions(CONFIG, "reading", "en", 30):
        assert isinstance(question, ExtractiveQA)
        for name in re.findall(r"[A-Z]\w+ [A-Z]\w+", question.question):
            assert name not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_stand_in_the_context_word_for_word(language: Language) -> None:
    for question in questions(CONFIG, "reading", language, 60):
        assert isinstance(question, ExtractiveQA)
        assert question.answers
        assert all(answer in question.context for answer in question.answers)


def test_translations_go_from_english_or_into_it() -> None:
    for language, pair in (("ru", ("en", "ru")), ("zh", ("en", "zh")), ("en", ("ru", "en"))):
        for question in questions(CONFIG, "translation", language, 5):  # type: ignore[arg-type]
            assert isinstance(question, Translation)
            assert (question.src_lang, question.tgt_lang) == pair
            assert question.src != question.tgt


def test_the_size_of_the_corpus_does_not_change_the_questions() -> None:
    assert questions(CONFIG, "hops_3", "ru", 5) == questions(
        CONFIG.model_copy(update={"num_documents": 10, "shares": {"story": 1.0}}), "hops_3", "ru", 5
    )


@pytest.mark.parametrize(
    ("config", "task", "language", "num_questions", "message"),
    [
        (CONFIG, "recal", "en", 5, "no task 'recal'"),
        (MicroworldConfig(languages=("en",)), "recall", "ru", 5, "no language 'ru'"),
        (MicroworldConfig(languages=("en",)), "translation", "en", 5, "no translations"),
        (MicroworldConfig(num_people=40), "recall", "en", 500, "not 500 different.*at most 1[0-9]{2} "),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(
    config: MicroworldConfig, task: str, language: Language, num_questions: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        questions(config, task, language, num_questions)
