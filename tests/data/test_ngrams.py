from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from growtx.data import ngrams
from growtx.data.ngrams import NGRAM_LANGUAGES, embedded_ngrams, interleave, leading
from growtx.data.sources import DataConfig


def test_languages_take_turns_and_nothing_is_listed_twice() -> None:
    assert interleave([["a", "b"], ["c"], ["a", "d"]]) == ("a", "c", "b", "d")


def test_leading_ngrams_are_ordered_by_count_then_alphabet() -> None:
    assert leading(Counter({"zz": 2, "aa": 2, "mm": 5})) == ["mm", "aa", "zz"]


class TestEmbeddedNgrams:
    def test_frequent_ngrams_of_many_languages_lead(self) -> None:
        ngrams = embedded_ngrams(3)
        assert {"th", "ст", "中国", "ch", "ion"} <= set(ngrams[:2000])
        assert not any(char.isdigit() for gram in ngrams for char in gram)
        assert {len(gram) for gram in ngrams} == {2, 3} and len(NGRAM_LANGUAGES) == 33
        assert len(set(ngrams)) == len(ngrams) > 20_000

    def test_capitalised_ngrams_are_known_although_the_statistics_are_lower_case(self) -> None:
        assert {"Th", "The"} <= set(embedded_ngrams(3))


class TestCountedNgrams:
    @pytest.fixture
    def data(self, tmp_path: Path) -> DataConfig:
        for name, word in (("one", "banana"), ("two", "वनवन"), ("three", "banter")):
            rows = [{"text": f"{word} {word}, 12 {index}"} for index in range(40)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        sources = [
            {"name": "fruit", "files": [str(tmp_path / "one.jsonl"), str(tmp_path / "three.jsonl")]},
            {"name": "woods", "files": str(tmp_path / "two.jsonl")},
        ]
        return DataConfig.model_validate({"sources": sources, "validation_fraction": 0.25})

    def test_a_task_reads_a_file_unless_limits_span_files(self, data: DataConfig) -> None:
        fruit, limited = data.sources[0], data.sources[0].model_copy(update={"max_documents": 3})
        assert [len(list(ngrams._parts(source, "x"))) for source in (fruit, limited)] == [2, 1]

    def test_counts_stay_within_words_and_keep_marks(self, data: DataConfig) -> None:
        (part,) = ngrams._parts(data.sources[1], "woods")
        rows = ngrams._table([])
        texts = list(ngrams._training_texts(part, 0.0))
        counted = ngrams._count(rows.from_pylist(texts), 3).to_pylist()
        assert {row["gram"]: row["count"] for row in counted} == {"वन": 160, "नव": 80, "वनव": 80, "नवन": 80}

    @pytest.mark.ray
    def test_the_job_counts_what_one_process_counts(self, data: DataConfig) -> None:
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            assert ngrams.counted_ngrams(data, 3) == self.expected(data)
        finally:
            ray.shutdown()

    def test_without_a_cluster_they_are_counted_block_by_block(
        self, data: DataConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ngrams, "DOCUMENTS_PER_BLOCK", 7)
        assert ngrams.counted_ngrams(data, 3) == self.expected(data)

    @staticmethod
    def expected(data: DataConfig) -> list[str]:
        expected = []
        for name, source in zip(data.source_names, data.sources, strict=True):
            parts = list(ngrams._parts(source, name))
            texts = [text for part in parts for text in ngrams._training_texts(part, data.validation_fraction)]
            counted = ngrams._count(ngrams._table([]).from_pylist(texts), 3).to_pylist()
            expected += [
                leading({row["gram"]: row["count"] for row in counted if len(row["gram"]) == length})
                for length in (2, 3)
            ]
        return interleave(expected)
