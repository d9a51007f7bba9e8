from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from growtx.config import build_config, to_yaml
from growtx.data.sources import DataConfig, SourceConfig, held_out_position, iterate_documents, iterate_source
from growtx.exceptions import ConfigError, DataError

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _config(*sources: dict[str, Any], **fields: Any) -> DataConfig:
    return build_config(DataConfig, {"sources": list(sources), **fields})


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """1,000 different short documents, a line each."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document {number}"}) + "\n" for number in range(1000)))
    return path


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table as on the hub, with the loader's own cache in a temporary directory."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    path = tmp_path / "table.parquet"
    columns = {"text": ["One", "Zwei", None, "Два"], "lang": ["en", "de", "de", "ru"], "stars": [1, 2, 3, 4]}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "exactly one of files, hf and microworld, not none"),
        ({"files": "a.txt", "hf": "b"}, "not files and hf"),
        ({"files": []}, "must name at least one file"),
        ({"files": "a.txt", "split": "test"}, "split can only be set together with hf"),
        ({"files": "a.txt", "weight": 0}, "weight=0: .*greater than 0"),
        ({"files": "a.txt", "wieght": 1}, "unknown key.*weight"),
        ({"microworld": {}, "where": {"lang": "en"}}, "choose microworld.languages"),
        ({"microworld": {"num_people": 1}}, "microworld.num_people"),
    ],
)
def test_sources_that_cannot_be_meant_are_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(source)


def test_a_mix_needs_a_source_and_different_names() -> None:
    with pytest.raises(ConfigError, match="at least one source"):
        _config()
    with pytest.raises(ConfigError, match="a is used twice"):
        _config({"files": "x.txt", "name": "a"}, {"files": "y.txt", "name": "a"})
    with pytest.raises(ConfigError, match="validation_fraction"):
        _config({"files": "x.txt"}, validation_fraction=0)


def test_names_come_from_what_is_read_and_are_unique() -> None:
    config = _config(
        {"files": "texts/news_en.parquet"},
        {"files": "other/news_en.txt"},
        {"files": "corpora/*.txt"},
        {"files": "*.txt"},
        {"hf": "org/books", "config": "en"},
        {"microworld": {}},
        {"microworld": {"seed": 1}, "name": "news_en"},
    )
    assert config.source_names == (
        "news_en-2",
        "news_en-3",
        "corpora",
        "files",
        "org/books/en",
        "microworld",
        "news_en",
    )


def test_the_default_is_the_microworld_and_survives_yaml() -> None:
    config = DataConfig()
    assert config.source_names == ("microworld",)
    import yaml

    assert build_config(DataConfig, yaml.safe_load(to_yaml(config))) == config


def test_documents_come_in_the_order_of_sources_and_files(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "b.txt").write_text("Second file")
    config = _config({"files": [f"{tmp_path}/b.txt", str(texts)], "name": "mine"}, {"microworld": {"num_documents": 3}})
    documents = list(iterate_documents(config))
    assert [document.text for document in documents[:2]] == ["Second file", "Document 0"]
    assert [document.source for document in documents[-4:]] == ["mine", "microworld", "microworld", "microworld"]
    assert documents == list(iterate_documents(config))


def test_the_held_out_share_is_as_configured(texts: Path) -> None:
    documents = list(iterate_documents(_config({"files": str(texts)}, validation_fraction=0.2)))
    held_out = [document for document in documents if document.split == "validation"]
    assert 150 < len(held_out) < 250
    assert all(document.position < 0.2 for document in held_out)


def test_a_larger_share_holds_out_the_same_documents_and_more(texts: Path) -> None:
    small, large = (
        {
            d.text
            for d in iterate_documents(_config({"files": str(texts)}, validation_fraction=share))
            if d.split == "validation"
        }
        for share in (0.1, 0.3)
    )
    assert small < large


def test_copies_stay_on_one_side_whatever_their_source_and_spacing(tmp_path: Path) -> None:
    rows = [f"Copied\n text {number}" for number in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": " ".join(row.split()) + " "}) + "\n" for row in rows))
    config = _config({"files": f"{tmp_path}/a.jsonl"}, {"files": f"{tmp_path}/b.jsonl"}, validation_fraction=0.5)
    splits = [document.split for document in iterate_documents(config)]
    assert splits[:300] == splits[300:]
    assert {"train", "validation"} == set(splits)


def test_positions_are_pinned_so_that_runs_of_other_versions_hold_out_the_same_text() -> None:
    assert held_out_position("The river carries boats.") == pytest.approx(0.0592776725280739)
    assert held_out_position("The  river\ncarries boats. ") == pytest.approx(0.0592776725280739)


def test_a_source_can_be_cut_by_documents_and_by_bytes(texts: Path) -> None:
    def count(**limits: int) -> int:
        return len(list(iterate_documents(_config({"files": str(texts), **limits}))))

    assert count(max_documents=7) == 7
    assert count(max_bytes=len("Document 0") * 5) == 5
    assert count(max_bytes=len("Document 0") * 5 + 3) == 5
    assert count(max_documents=3, max_bytes=10**9) == 3


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ("", {}, "Source 'a' has no text.*files are not empty"),
        ('{"text": "  "}\n', {}, "Source 'a' has no text"),
        ('{"text": "x", "lang": "en"}\n', {"where": {"lang": "ru"}}, "has no text.*where"),
        ('{"text": "long text"}\n', {"max_bytes": 2}, "has no text.*max_bytes"),
        ('{"text": "\\ud800"}\n', {}, "line 1: not valid Unicode"),
    ],
)
def test_nothing_to_read_is_an_error_with_a_remedy(
    tmp_path: Path, content: str, fields: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        list(iterate_documents(_config({"files": f"{tmp_path}/a.jsonl", **fields})))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_sets_are_read_through_their_loader(parquet: Path, streaming: bool) -> None:
    fields = {"hf": "parquet", "data_files": str(parquet), "streaming": streaming}
    assert [d.text for d in iterate_documents(_config(fields))] == ["One", "Zwei", "Два"]
    assert [d.text for d in iterate_documents(_config({**fields, "where": {"lang": ["ru", "en"]}}))] == ["One", "Два"]
    with pytest.raises(DataError, match=r"row 0: there is no column 'body'.*text, lang, stars"):
        list(iterate_documents(_config({**fields, "text_column": "body"})))
    with pytest.raises(DataError, match="'stars' is not text but 1"):
        list(iterate_documents(_config({**fields, "text_column": "stars"})))


@pytest.mark.parametrize(
    "fields", [{"hf": "parquet", "data_files": "missing.parquet"}, {"hf": "no/such-data-set-anywhere"}]
)
def test_a_data_set_that_cannot_be_loaded_is_one_sentence(fields: dict[str, Any], parquet: Path) -> None:
    with pytest.raises(DataError, match=r"The data set .* cannot be loaded \(.+\)\. Check name"):
        list(iterate_documents(_config(fields)))


def test_reading_can_stop_at_any_document(texts: Path) -> None:
    documents = iterate_source(SourceConfig(files=str(texts)), "texts", 0.1)
    assert next(documents).text == "Document 0"
    documents.close()  # type: ignore[attr-defined]
