from __future__ import annotations

import json
from pathlib import Path

import pytest

from growtx.evaluate.task_data import load, read_set
from growtx.exceptions import DataError


def test_the_answer_key_goes_round_so_that_no_letter_is_better_than_another(questions_dir: Path) -> None:
    rows = load(data_dir=str(questions_dir), name="mmlu")["test"]
    assert [row["answer_index"] for row in rows] == [0, 1, 2, 3] * 3
    for row in rows:
        assert row["choices"][row["answer_index"]] == "teacher"
        assert sorted(row["choices"]) == ["Anna", "Berlin", "teacher", "works"]


def test_letters_follow_the_number_of_choices(questions_dir: Path) -> None:
    rows = load(data_dir=str(questions_dir), name="arc_easy")["test"]
    assert sorted(len(row["letters"]) for row in rows) == [2, 3]


def test_the_prompt_ends_where_the_answer_begins(questions_dir: Path) -> None:
    row = load(data_dir=str(questions_dir), name="mmlu")["test"][0]
    assert row["letter_prompt"].endswith("A. teacher\nB. Anna\nC. works\nD. Berlin\nAnswer:")


def test_solved_examples_are_of_the_same_subject(questions_dir: Path) -> None:
    for row in load(data_dir=str(questions_dir), name="mmlu", num_examples=1)["test"]:
        assert ("Who lives in Berlin?" in row["letter_prompt"]) == (row["subject"] == "people")


def test_translation_can_be_turned_round(questions_dir: Path) -> None:
    row = load(data_dir=str(questions_dir), name="flores200_en-ru", reverse=True)["test"][0]
    assert (row["src_name"], row["tgt_name"], row["tgt"], row["tgt_lang"]) == (
        "Russian", "English", "Anna lives in Berlin", "en",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "has no nothing.jsonl"), ("twice", "several splits of twice"), ("broken", "not a file of JSON lines")],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    for file in ("twice_dev.jsonl", "twice_test.jsonl"):
        (tmp_path / file).write_text("{}")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(DataError, match=message):
        read_set(str(tmp_path), name)


def test_no_directory_names_the_option_that_gives_one() -> None:
    with pytest.raises(DataError, match="--data-dir"):
        read_set(None, "mmlu")


@pytest.mark.parametrize("row", [{"text": "no question"}, {"question": "?", "choices": ["a"], "answer_index": 1}])
def test_an_unknown_format_is_named(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="unknown format"):
        load(data_dir=str(tmp_path), name="set")
