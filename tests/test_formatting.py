from __future__ import annotations

import pytest

from growtx import formatting as fmt


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (12_345, "12.3 k"), (999_950, "1.00 M"), (1_234_567, "1.23 M"), (6.89e10, "68.9 B")],
)
def test_counts_have_three_significant_digits(value: float, text: str) -> None:
    assert fmt.abbreviated(value).replace(fmt.NBSP, " ") == text


@pytest.mark.parametrize(("seconds", "text"), [(8.31, "8.3 s"), (245, "4 min 5 s"), (7620, "2 h 7 min")])
def test_durations_read_as_clock_words(seconds: float, text: str) -> None:
    assert fmt.duration(seconds).replace(fmt.NBSP, " ") == text


def test_absent_and_non_finite_values_are_dashes() -> None:
    for say in (fmt.abbreviated, fmt.size, fmt.duration, fmt.decimal, fmt.signed, fmt.percent, fmt.short_hash):
        assert say(None) == fmt.MISSING
    assert fmt.decimal(float("nan")) == fmt.MISSING
