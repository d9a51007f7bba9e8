from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from growtx.evaluate.results import Evaluation, Score, save_evaluation
from growtx.exceptions import StoreError
from growtx.report.model_card import markdown, write_model_card
from growtx.report.page import Table
from growtx.storage import Storage

MakeRun = Callable[..., Path]


def card_of(run_dir: Path) -> tuple[dict[str, object], str]:
    text = Path(write_model_card(str(run_dir))).read_text()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def with_sources(run_dir: Path, **changes: object) -> None:
    tree = yaml.safe_load((run_dir / "run.yaml").read_text())
    sources = [
        {"name": "books", "files": "books/*.txt", "license": "CC-BY-4.0"},
        {"files": ["a.txt", "b.txt"]},
        {"microworld": {}},
    ]
    (run_dir / "run.yaml").write_text(yaml.safe_dump(tree | {"data": {"sources": sources}} | changes))


def test_card_tells_lineage_data_licences_and_how_to_repeat(run_dir: Path) -> None:
    with_sources(run_dir, license="apache-2.0")
    head, body = card_of(run_dir)
    assert head["license"] == "apache-2.0"
    assert "| 4 | depth-4 | 4 | 900,000 | 2,100,000 |" in body
    assert "| books | files: books/*.txt | 1 | CC-BY-4.0 |" in body
    assert "No licence is stated for files" in body
    assert "| microworld | generated text | 1 | generated |" in body
    assert "python rayjobs/grow.py --preset demo" in body
    assert "AutoModelForCausalLM.from_pretrained" in body
    assert "No benchmark was run." in body


def test_results_stand_in_the_card_and_in_its_head(run_dir: Path) -> None:
    common = {"task": "mmlu", "metric": "acc", "protocol": "log-likelihood", "num_items": 100, "chance": 0.25}
    scores = tuple(Score(depth=depth, value=0.2 + 0.05 * depth, low=0.2, high=0.5, **common) for depth in (1, 2))
    save_evaluation(Storage(run_dir), Evaluation(model="run", scores=scores))
    head, body = card_of(run_dir)
    assert "30.0 [20.0, 50.0]" in body
    (entry,) = head["model-index"][0]["results"]
    assert entry["metrics"][0]["value"] == 0.3


def test_a_run_without_a_model_has_no_card(make_run: MakeRun) -> None:
    with pytest.raises(StoreError, match="no finished stage"):
        write_model_card(str(make_run(num_stages=1, finished=0)))


def test_cells_cannot_break_a_markdown_table() -> None:
    assert markdown(Table(["a|b"], [["c|d"]])) == "| a\\|b |\n| :-- |\n| c\\|d |\n"
