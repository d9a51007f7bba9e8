"""Where the task files that ship with growtx get their questions: JSON lines in a directory that the user names.

lm-eval calls `load` for every task with `custom_dataset: !function growtx.evaluate.task_data.load`, and passes what
was given as `--metadata '{"data_dir": "DIR"}'` (its own command line) or `--data-dir DIR` (growtx evaluate).
A set NAME is read from `DIR/NAME.jsonl`, or from `DIR/NAME_SPLIT.jsonl` if there is only one split.

    multiple choice   {"question", "choices", "answer_index"} and optionally "context", "task": "set/subject"
    answers in text   {"context", "question", "answers": [...]}; empty answers: the context does not hold one
    translation       {"src", "tgt", "src_lang", "tgt_lang"}
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtx.exceptions import DataError

if TYPE_CHECKING:
    from datasets import Dataset

LETTERS = "ABCDEFGHIJ"
KEYS = (
    "Its keys are question, choices and answer_index, or context, question and answers, or src, tgt, src_lang and "
    "tgt_lang"
)
LANGUAGE_NAMES = {
    "ar": "Arabic", "de": "German", "en": "English", "fr": "French", "ja": "Japanese", "ru": "Russian", "zh": "Chinese",
}  # fmt: skip
Row = dict[str, Any]


def load(
    *, data_dir: str | None = None, name: str, reverse: bool = False, num_examples: int = 0, **_: Any
) -> dict[str, Dataset]:
    """The questions of a set as lm-eval wants them: `{"test": Dataset}`.

    Args:
        data_dir: directory of JSON lines files.
        name: of the set, from the task file.
        reverse: translate from `tgt` to `src`.
        num_examples: solved questions to put before each one, from `NAME_fewshot.jsonl`, of the same subject.
        _: whatever else lm-eval knows of the model; not needed here.

    Raises:
        DataError: no directory given, no such set, or rows of another format.
    """
    from datasets import Dataset

    raw = read_set(data_dir, name)
    random.Random(0).shuffle(raw)  # sets are sorted by subject or article, and a limit should take a fair sample
    rows = [_prepared(row, position, reverse) for position, row in enumerate(raw)]
    examples = _examples(data_dir, name, num_examples) if num_examples else {}
    for row in rows:
        if row["subject"] in examples:
            row["letter_prompt"] = examples[row["subject"]] + row["letter_prompt"]
    return {"test": Dataset.from_list(rows)}


def read_set(data_dir: str | None, name: str) -> list[Row]:
    """The rows of a set as they were written."""
    if data_dir is None:
        raise DataError(f"the questions of {name} are read from files", "Name their directory with --data-dir DIR")
    path = _find(Path(data_dir), name)
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path} is not a file of JSON lines ({error})", "Write one question a line; " + KEYS
        ) from error
    if not rows:
        raise DataError(f"{path} is empty", "Give a file with at least one question")
    return rows


def _find(folder: Path, name: str) -> Path:
    if (folder / f"{name}.jsonl").is_file():
        return folder / f"{name}.jsonl"
    found = [path for path in sorted(folder.glob(f"{name}_*.jsonl")) if path.stem != f"{name}_fewshot"]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} holds several splits of {name} ({names})", f"Keep one, or name it {name}.jsonl")
    raise DataError(
        f"{folder} has no {name}.jsonl and no {name}_SPLIT.jsonl", "Check --data-dir, or leave the task out"
    )


def _prepared(row: Row, position: int, reverse: bool) -> Row:
    """The row with what the prompts refer to; its format is recognised by its keys."""
    match row:
        case {"question": str(), "choices": list(choices), "answer_index": int(gold)} if 0 <= gold < len(choices):
            return _multiple_choice(row, position)
        case {"context": str(context), "question": str(question), "answers": list(answers)}:
            return {"subject": "", "context": context.strip(), "question": question.strip(), "answers": answers}
        case {"src": str(source), "tgt": str(target), "src_lang": str(source_lang), "tgt_lang": str(target_lang)}:
            pair = [(source_lang, source), (target_lang, target)][:: -1 if reverse else 1]
            return {
                "subject": "",
                "src": pair[0][1],
                "tgt": pair[1][1],
                "src_name": LANGUAGE_NAMES.get(pair[0][0], pair[0][0]),
                "tgt_name": LANGUAGE_NAMES.get(pair[1][0], pair[1][0]),
                "tgt_lang": pair[1][0],
            }
    keys = ", ".join(sorted(row)) if isinstance(row, Mapping) else type(row).__name__
    raise DataError(f"a question with the keys {keys} has an unknown format", KEYS)


def _multiple_choice(row: Row, position: int) -> Row:
    """The answer key cycles through A, B, C, D, A, ...: always answering with one letter scores exactly chance.

    In MMLU as published, 23 % of the answers are A and 27 % are D: more than a tiny model differs from guessing.
    """
    num_choices = len(row["choices"])
    gold = position % num_choices
    texts = [str(row["choices"][(at - gold + row["answer_index"]) % num_choices]) for at in range(num_choices)]
    context = f"{row['context'].strip()}\n" if row.get("context") else ""
    question = row["question"].strip()
    lettered = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    return {
        "subject": str(row.get("task", "")).partition("/")[2],
        "letter_prompt": f"{context}{question}\n{lettered}\nAnswer:",
        "open_prompt": f"{context}Question: {question}\nAnswer:",
        "choices": texts,
        "letters": list(LETTERS[:num_choices]),
        "answer_index": gold,
    }


def _examples(data_dir: str | None, name: str, num_examples: int) -> dict[str, str]:
    """Solved questions per subject, as text that ends where the question to answer begins."""
    solved: dict[str, list[str]] = {}
    for position, row in enumerate(read_set(data_dir, f"{name}_fewshot")):
        ready = _prepared(row, position, reverse=False)
        text = f"{ready['letter_prompt']} {LETTERS[ready['answer_index']]}\n\n"
        solved.setdefault(ready["subject"], []).append(text)
    return {subject: "".join(texts[:num_examples]) for subject, texts in solved.items()}
