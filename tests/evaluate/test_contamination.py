from __future__ import annotations

import json
from pathlib import Path

import pytest

from growtx.data import sources
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


def test_only_the_parts_that_were_trained_on_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SMALL_BYTES": 100, "SMALLEST_PART": 100, "LARGEST_PART": 100}.items():
        monkeypatch.setattr(sources, name, value)
    rows = [{"question": KNOWN, "choices": ["a", "b"], "answer_index": 0}]
    (tmp_path / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"Text {number}. {KNOWN if number == 2 else NEW}")
    tree = {"sources": [{"files": f"{tmp_path}/*.txt", "name": "texts"}], "validation_fraction": 1e-9}
    data, task = DataConfig.model_validate(tree), load_task("growtx_arc_easy", data_dir=str(tmp_path))
    order = [part.files[0].path[-5] for part in sources.divide(data.sources[0]) if part.files]
    found = {n: overlaps_with(data, [task], parts={"texts": n})[0].num_overlapping for n in (1, 2, 3, 4)}
    assert found == {n: int("2" in order[:n]) for n in found}


def test_an_item_is_its_question_its_choices_and_its_answer(questions_dir: Path) -> None:
    (text,) = item_texts(load_task("growtx_flores200_en-ru", data_dir=str(questions_dir)))
    assert "Anna lives in Berlin" in text
    assert "Анна живёт в Берлине" in text
