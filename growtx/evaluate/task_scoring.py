"""Scores of generated text: answers against references, translations against a reference.

Called by lm-eval through the task files (`process_results` and `aggregation`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from growtx.compat.sacrebleu import score_of_counts, sentence_counts
from growtx.evaluate.intervals import Floats, Interval, bootstrap

NO_ANSWER = frozenset({"", "unanswerable", "no answer"})
ARTICLES = re.compile(r"\b(a|an|the)\b")


class TranslationPair(NamedTuple):
    """One translation for the corpus scores; `language` decides how BLEU cuts words."""

    reference: str
    hypothesis: str
    language: str


def score_answer(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match and F1, and `contains`: a reference occurs in the generated text (the paper's rule).

    A question without answers is right when the model says that there is none; `contains` leaves it out.
    """
    answer, references = results[0], doc["answers"]
    if not references:
        right = float(normalised(answer) in NO_ANSWER)
        return {"f1": right, "exact_match": right}
    return {
        "f1": max(token_f1(answer, reference) for reference in references),
        "exact_match": float(any(normalised(answer) == normalised(reference) for reference in references)),
        "contains": float(any(normalised(reference) in normalised(answer) for reference in references)),
    }


def score_translation(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What the corpus scores aggregate, and sentence BLEU (0 to 1)."""
    pair = TranslationPair(doc["tgt"], results[0].strip(), doc["tgt_lang"])
    return {"chrf": pair, "bleu": pair, "sentence_bleu": sentence_bleu(pair)}


def corpus_chrf(pairs: Sequence[TranslationPair]) -> float:
    """chrF (beta 2, order 6), from 0 to 1."""
    return _corpus_score(_chrf(), pairs)


def corpus_bleu(pairs: Sequence[TranslationPair]) -> float:
    """sacrebleu's corpus BLEU, from 0 to 1; Chinese and Japanese are cut by characters."""
    return _corpus_score(_bleu(pairs[0].language), pairs)


def corpus_interval(metric: str, pairs: Sequence[TranslationPair]) -> Interval:
    """chrF or BLEU of a corpus with its bootstrap interval over sentences."""
    scorer = _chrf() if metric == "chrf" else _bleu(pairs[0].language)
    hypotheses, references = [pair.hypothesis for pair in pairs], [pair.reference for pair in pairs]
    counts = np.asarray(sentence_counts(scorer, hypotheses, references), dtype=np.float64)

    def score(drawn: Floats) -> Floats:
        return np.array([score_of_counts(scorer, row) / 100 for row in (drawn @ counts).tolist()])

    return bootstrap(len(pairs), score)


def sentence_bleu(pair: TranslationPair) -> float:
    """BLEU of one sentence with effective order, from 0 to 1."""
    score = _bleu(pair.language, effective_order=True).sentence_score(pair.hypothesis, [pair.reference])
    return float(score.score) / 100


def normalised(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no English articles, single spaces; CJK cut by character."""
    text = "".join(" " if unicodedata.category(char).startswith("P") else char for char in text.lower())
    text = "".join(f" {char} " if _is_cjk(char) else char for char in text)
    return " ".join(ARTICLES.sub(" ", text).split())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words that both have in common."""
    given, wanted = normalised(answer).split(), normalised(reference).split()
    num_common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * num_common / (len(given) + len(wanted)) if num_common else 0.0


def _is_cjk(char: str) -> bool:
    return "\u3040" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff"


def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _bleu(language: str, *, effective_order: bool = False) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize={"zh": "zh", "ja": "char"}.get(language, "13a"), effective_order=effective_order)


def _corpus_score(metric: Any, pairs: Sequence[TranslationPair]) -> float:
    hypotheses, references = [pair.hypothesis for pair in pairs], [pair.reference for pair in pairs]
    return float(metric.corpus_score(hypotheses, [references]).score) / 100
