"""The microworld's held-out questions as lm-eval tasks, all languages of the world in one task, a group for each.

Questions are asked as the corpus asks them: openly, the choices scored as answers in words; only `compare`, which
cannot be asked without its choices, is scored by letters.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from growtx import microworld
from growtx.evaluate import task_scoring
from growtx.evaluate.results import MICROWORLD_TASK
from growtx.evaluate.task_data import LETTERS
from growtx.microworld import ExtractiveQA, Language, MicroworldConfig, MultipleChoice, Question, Translation

DEFAULT_QUESTIONS = 100  # of each task and language
Row = dict[str, Any]


def task_names(name: str) -> tuple[str, ...]:
    """Full names of what `microworld` or `microworld_TASK` stands for; none for any other name."""
    names = tuple(f"{MICROWORLD_TASK}_{task}" for task in microworld.TASKS)
    return names if name == MICROWORLD_TASK else (name,) if name in names else ()


def build_task(name: str, config: MicroworldConfig, num_questions: int | None) -> ConfigurableTask:
    """The lm-eval task `microworld_TASK`, with `num_questions` in each language of the world.

    Raises:
        ConfigError: the world is too small for the questions, or has one language and is asked to translate.
    """
    task = name.removeprefix(f"{MICROWORLD_TASK}_")
    rows = [
        _row(question, language)
        for language in config.languages
        for question in microworld.questions(config, task, language, num_questions or DEFAULT_QUESTIONS)
    ]
    shared = {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "doc_to_text": "prompt",
        "target_delimiter": "",
        "metadata": {"version": 1.0},
    }
    return ConfigurableTask(config=shared | _kind(rows[0]))


def _kind(row: Row) -> dict[str, Any]:
    """What lm-eval does with the rows, by their form."""

    def mean(*metrics: str) -> list[dict[str, Any]]:
        return [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]

    generation = {"until": ["\n"], "do_sample": False}
    if "continuations" in row:
        choice = {"output_type": "multiple_choice", "doc_to_choice": "continuations", "doc_to_target": "answer_index"}
        return choice | {"metric_list": mean("acc", "acc_norm")}
    if "answers" in row:
        return {
            "output_type": "generate_until",
            "doc_to_target": "{{answers[0]}}",
            "generation_kwargs": generation | {"max_gen_toks": 16},
            "process_results": task_scoring.score_answer,
            "metric_list": mean("f1", "exact_match", "contains"),
        }
    corpus = [
        {"metric": "chrf", "aggregation": task_scoring.corpus_chrf, "higher_is_better": True},
        {"metric": "bleu", "aggregation": task_scoring.corpus_bleu, "higher_is_better": True},
    ]
    return {
        "output_type": "generate_until",
        "doc_to_target": "tgt",
        "generation_kwargs": generation | {"max_gen_toks": 64},
        "process_results": task_scoring.score_translation,
        "metric_list": [*corpus, *mean("sentence_bleu")],
    }


def _row(question: Question, language: Language) -> Row:
    prompt = microworld.prompt(question, language)
    if isinstance(question, Translation):
        return {"subject": language, "prompt": prompt, "tgt": question.tgt, "tgt_lang": question.tgt_lang}
    if isinstance(question, ExtractiveQA):
        return {"subject": language, "prompt": prompt, "answers": list(question.answers)}
    return _multiple_choice(question, language, prompt)


def _multiple_choice(question: MultipleChoice, language: Language, letter_prompt: str) -> Row:
    letters = list(LETTERS[: len(question.choices)])
    by_letter = question.task.split("/")[1] == "compare"
    answers = letters if by_letter else list(question.choices)
    space = "" if letter_prompt.endswith("：") else " "
    return {
        "subject": language,
        "prompt": letter_prompt if by_letter else _open_prompt(question, language),
        "continuations": [space + answer for answer in answers],
        "letter_prompt": letter_prompt,
        "letters": letters,
        "answer_index": question.answer_index,
    }


def _open_prompt(question: MultipleChoice, language: Language) -> str:
    without_choices = ExtractiveQA(question.task, question.context, question.question, ())
    return microworld.prompt(without_choices, language)
