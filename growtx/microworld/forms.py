"""Questions in the forms of the paper's benchmarks, and how a document shows them.

Fields have the names of common evaluation files: multiple choice `{task, question, choices, answer_index}`
(with a `context` where the answer lies in one), extractive question answering `{task, context, question, answers}`,
translation `{task, src, tgt, src_lang, tgt_lang}`.
"""

from __future__ import annotations

from dataclasses import dataclass

from growtx.microworld.config import Language

LETTERS = "ABCD"
_LABELS: dict[Language, tuple[str, str]] = {
    "en": ("Question: ", "Answer:"),
    "ru": ("Вопрос: ", "Ответ:"),
    "zh": ("问题：", "答案："),
}
_LANGUAGE_NAMES: dict[Language, str] = {"en": "English:", "ru": "Русский:", "zh": "中文："}


@dataclass(frozen=True)
class MultipleChoice:
    """A question with four choices, one of them right."""

    task: str
    question: str
    choices: tuple[str, ...]
    answer_index: int
    context: str = ""


@dataclass(frozen=True)
class ExtractiveQA:
    """A question whose answers stand in the context, word for word."""

    task: str
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Translation:
    """A text and its translation."""

    task: str
    src: str
    tgt: str
    src_lang: Language
    tgt_lang: Language


Question = MultipleChoice | ExtractiveQA | Translation


def open_prompt(question: str, language: Language) -> str:
    """A question without choices, up to where the answer begins."""
    ask, answer = _LABELS[language]
    return f"{ask}{question}\n{answer}"


def shown(prompt: str, answer: str) -> str:
    """A prompt and its answer as they stand in a document: a space between them, except after a wide colon."""
    return prompt + answer if prompt.endswith("：") else f"{prompt} {answer}"


def prompt(question: Question, language: Language = "en") -> str:
    """The question as documents of the microworld show it, up to where the answer begins (no space at the end).

    Args:
        question: what is asked.
        language: of the labels; a translation labels itself.
    """
    if isinstance(question, Translation):
        return f"{shown(_LANGUAGE_NAMES[question.src_lang], question.src)}\n{_LANGUAGE_NAMES[question.tgt_lang]}"
    context = f"{question.context}\n" if question.context else ""
    if isinstance(question, ExtractiveQA):
        return context + open_prompt(question.question, language)
    ask, answer = _LABELS[language]
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{context}{ask}{question.question}\n{choices}\n{answer}"


def solved(question: Question, language: Language) -> str:
    """Prompt and target, as documents show them."""
    return shown(prompt(question, language), target(question))


def target(question: Question) -> str:
    """What belongs after the prompt: the letter, the first answer, or the translation."""
    if isinstance(question, MultipleChoice):
        return LETTERS[question.answer_index]
    return question.tgt if isinstance(question, Translation) else question.answers[0]
