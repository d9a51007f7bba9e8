from __future__ import annotations

import pytest

from growtx.evaluate.task_scoring import (
    TranslationPair,
    corpus_bleu,
    corpus_chrf,
    corpus_interval,
    score_answer,
    score_translation,
    token_f1,
)


def answered(answer: str, references: list[str]) -> dict[str, float]:
    return score_answer({"answers": references}, [answer])


def test_squad_ignores_case_articles_and_punctuation() -> None:
    assert answered(" The Normans. ", ["normans"]) == {"f1": 1.0, "exact_match": 1.0, "contains": 1.0}


def test_the_papers_rule_finds_the_reference_anywhere_in_the_answer() -> None:
    score = answered("it was in France, I think", ["Germany", "France"])
    assert (score["exact_match"], score["contains"]) == (0.0, 1.0)
    assert score["f1"] == pytest.approx(2 / 7)


def test_chinese_is_compared_by_character() -> None:
    assert token_f1("在柏林市", "柏林") == pytest.approx(2 * 2 / 6)


@pytest.mark.parametrize(("answer", "right"), [("unanswerable", 1.0), ("", 1.0), ("Berlin", 0.0)])
def test_a_question_without_answer_is_right_when_the_model_says_so(answer: str, right: float) -> None:
    assert answered(answer, []) == {"f1": right, "exact_match": right}


def test_translation_scores_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses = ["the cat sat on the mat today", "a dog ran home"]
    references = ["the cat sat on the mat", "the dog ran home"]
    pairs = [TranslationPair(r, h, "en") for h, r in zip(hypotheses, references, strict=True)]
    assert 100 * corpus_bleu(pairs) == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    assert 100 * corpus_chrf(pairs) == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score)
    sentence = sacrebleu.sentence_bleu(hypotheses[1], [references[1]]).score
    row = score_translation({"tgt": references[1], "tgt_lang": "en"}, [hypotheses[1]])
    assert 100 * row["sentence_bleu"] == pytest.approx(sentence)


def test_chinese_bleu_needs_no_spaces() -> None:
    assert corpus_bleu([TranslationPair("安娜住在柏林", "安娜住在柏林", "zh")]) == pytest.approx(1.0)


def test_the_interval_of_a_corpus_score_holds_it() -> None:
    pairs = [TranslationPair("the cat sat", text, "en") for text in ("the cat sat", "a dog", "the cat", "cat sat")]
    value, low, high = corpus_interval("chrf", pairs)
    assert value == pytest.approx(corpus_chrf(pairs))
    assert low is not None and high is not None and 0 <= low < value < high <= 1


def test_a_single_translation_that_shares_nothing_has_an_interval() -> None:
    pairs = [TranslationPair("the cat sat", text, "en") for text in ("", "", "", "the cat")]
    assert corpus_interval("chrf", pairs).low == 0.0
