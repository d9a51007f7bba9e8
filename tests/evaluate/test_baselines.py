from __future__ import annotations

import pytest

from growtx.evaluate.outcomes import chance, majority, shortest


def test_chance_counts_every_question_by_its_choices() -> None:
    assert chance([["a", "b"], ["a", "b", "c", "d"]]) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_shortest_is_counted_in_characters() -> None:
    choices = [["long one", "no"], ["no", "long one"], ["a", "bb"], ["same", "size"]]
    assert shortest(choices, [1, 1, 0, 0]) == 0.75
    assert shortest(choices, [0, 1, 1, 1]) == 0.0


def test_an_answer_that_is_right_everywhere_is_found_without_a_model() -> None:
    assert majority([["yes", "no"]] * 40, [0] * 40) == 1.0


def test_answers_that_never_repeat_give_no_more_than_chance() -> None:
    choices = [[f"{at}-{choice}" for choice in "abcd"] for at in range(40)]
    assert majority(choices, [0] * 40) == 0.25


def test_a_key_that_goes_round_gives_chance() -> None:
    assert majority([list("ABCD")] * 400, [at % 4 for at in range(400)]) == pytest.approx(0.25, abs=0.05)
