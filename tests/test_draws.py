from __future__ import annotations

from collections import Counter

from growtx.generator import Draws


def test_numbers_are_the_same_on_every_platform_and_in_every_version() -> None:
    draw = Draws(0, "pinned")
    pinned = [416, 10, 80, 297, 370, 395, 226, 370, 628, 977, 698, 84, 551, 506, 934, 262, 17, 875, 377, 948]
    assert [draw.below(1000) for _ in range(20)] == pinned


def test_streams_of_different_keys_differ() -> None:
    first, second = Draws(1, 23), Draws(12, 3)
    assert [first.below(2**32) for _ in range(4)] != [second.below(2**32) for _ in range(4)]


def test_all_values_are_equally_likely() -> None:
    draw = Draws("uniform")
    counts = Counter(draw.below(7) for _ in range(7000))
    assert set(counts) == set(range(7))
    assert max(counts.values()) - min(counts.values()) < 250


def test_distinct_gives_every_subset_without_repetition() -> None:
    draw = Draws("distinct")
    seen = {tuple(draw.distinct(4, 3)) for _ in range(500)}
    assert len(seen) == 24
    assert all(len(set(numbers)) == 3 for numbers in seen)
    assert sorted(draw.distinct(10, 10)) == list(range(10))


def test_shuffled_keeps_all_items() -> None:
    assert sorted(Draws("shuffle").shuffled("aabcd")) == list("aabcd")
