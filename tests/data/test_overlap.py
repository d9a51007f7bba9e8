from __future__ import annotations

import pytest

from growtx.data import overlap
from growtx.data.overlap import measure_overlap, words_of

QUESTION = "Which of the following rivers is the longest one that flows through three countries of Europe"
OTHER = "What did the committee decide about the building of a new bridge over the old canal"


def test_a_question_that_was_copied_is_found_whatever_its_case_and_punctuation() -> None:
    copied = f"Some text. {QUESTION.upper().replace(' ', ',  ')}?! More text."
    result = measure_overlap([copied], {"task": [QUESTION, OTHER]})["task"]
    assert result.shares == (1.0, 0.0)
    assert result.num_overlapping == 1
    assert result.num_items == 2


def test_a_part_counts_by_its_share() -> None:
    words = QUESTION.split()
    assert len(words) == 16
    result = measure_overlap([" ".join(words[:13])], {"task": [QUESTION]})["task"]
    assert result.shares == (0.25,)
    assert result.num_overlapping == 1
    assert [result.num_contained(share) for share in (0.2, 0.25, 0.26)] == [1, 1, 0]


def test_twelve_words_in_a_row_are_not_thirteen() -> None:
    words = QUESTION.split()
    assert measure_overlap([" ".join(words[:12])], {"task": [QUESTION]})["task"].num_overlapping == 0
    assert measure_overlap([" ".join(words[:12])], {"task": [QUESTION]}, ngram=12)["task"].num_overlapping == 1


def test_words_of_the_question_in_another_order_are_no_overlap() -> None:
    shuffled = " ".join(reversed(QUESTION.split()))
    assert measure_overlap([shuffled], {"task": [QUESTION]})["task"].num_overlapping == 0


def test_nothing_spans_two_documents() -> None:
    words = QUESTION.split()
    halves = [" ".join(words[:8]), " ".join(words[8:])]
    assert measure_overlap(halves, {"task": [QUESTION]})["task"].num_overlapping == 0


def test_short_items_are_looked_up_whole_and_very_short_ones_say_nothing() -> None:
    short = "one two three four five six seven eight nine"
    result = measure_overlap([f"zero {short} ten"], {"task": [short, "one two three", f"{short} eleven"]})["task"]
    assert result.num_too_short == 1
    assert result.shares == (1.0, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "黄河是中国第二长的河流它流过九个省份",
        "Волга — самая длинная река Европы, и она впадает в Каспийское море у города",
    ],
)
def test_other_scripts_are_compared_by_their_words(text: str) -> None:
    assert measure_overlap([f"{text}。"], {"task": [text]}, ngram=8)["task"].shares == (1.0,)


def test_words_are_compared_in_compatibility_form() -> None:
    assert words_of("Ｆｕｌｌ ﬁne STRASSE straße") == ["full", "fine", "strasse", "strasse"]
    assert words_of("中国A股 东京タワー") == ["中", "国", "a", "股", "东", "京", "タ", "ワ", "ー"]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"{number} {QUESTION if number % 3 == 0 else OTHER}" for number in range(30)]
    tests = {"a": [QUESTION], "b": [OTHER, f"{OTHER} nobody"]}
    whole = measure_overlap(documents, tests)
    monkeypatch.setattr(overlap, "WORDS_PER_CHUNK", 1)
    assert measure_overlap(iter(documents), tests) == whole


def test_no_documents_and_no_items_are_no_overlap() -> None:
    result = measure_overlap([], {"task": [QUESTION], "empty": []})
    assert result["task"].num_overlapping == 0
    assert result["empty"].num_items == 0
