from __future__ import annotations

import json
from pathlib import Path

import pytest

from growtx.data.sources import DataConfig

pytest.importorskip("lm_eval")

from growtx.evaluate.contamination import item_texts, overlaps_with
from growtx.evaluate.harness import load_task

KNOWN = "In which old harbour town by the cold northern sea did the famous clockmaker spend his last winter?"
NEW = "Which of these many numbers is the smallest one that two different pairs of cubes can be added up to?"


def test_questions_that_stand_in_the_training_text_are_counted(tmp_path: Path) -> None:
    rows = [{"question": text, "choices": ["a", "b"], "answer_index": 0} for text in (KNOWN, NEW, "Short?")]
    (tmp_path / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tmp_path / "training.txt"
    text.write_text(f"A quiz from the newspaper. {KNOWN}\n\nNobody knew.\n\n" + "More text. " * 50)
    data = DataConfig.model_validate({"sources": [{"files": str(text)}], "validation_fraction": 1e-9})
    (found,) = overlaps_with(data, [load_task("growtx_arc_easy", data_dir=str(tmp_path))])
    assert (found.num_items, found.num_too_short, found.num_overlapping) == (3, 1, 1)


def test_an_item_is_its_question_its_choices_and_its_answer(questions_dir: Path) -> None:
    (text,) = item_texts(load_task("growtx_flores200_en-ru", data_dir=str(questions_dir)))
    assert "Anna lives in Berlin" in text
    assert "Анна живёт в Берлине" in text
