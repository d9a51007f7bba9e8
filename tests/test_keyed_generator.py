from __future__ import annotations

from collections import Counter

from growtx.generator import KeyedGenerator


def test_numbers_are_the_same_on_every_platform_and_in_every_version() -> None:
    generator = KeyedGenerator(0, "pinned")
    pinned = [416, 10, 80, 297, 370, 395, 226, 370, 628, 977, 698, 84, 551, 506, 934, 262, 17, 875, 377, 948]
    assert [generator.randbelow(1000) for _ in range(20)] == pinned


def test_streams_of_different_keys_differ() -> None:
    first, second = KeyedGenerator(1, 23), KeyedGenerator(12, 3)
    assert [first.randbelow(2**32) for _ in range(4)] != [second.randbelow(2**32) for _ in range(4)]


def test_all_values_are_equally_likely() -> None:
    generator = KeyedGenerator("uniform")
    counts = Counter(generator.randbelow(7) for _ in range(7000))
    assert set(counts) == set(range(7))
    assert max(counts.values()) - min(counts.values()) < 250


def test_distinct_gives_every_subset_without_repetition() -> None:
    generator = KeyedGenerator("distinct")
    seen = {tuple(generator.sample_range(4, 3)) for _ in range(500)}
    assert len(seen) == 24
    assert all(len(set(numbers)) == 3 for numbers in seen)
    assert sorted(generator.sample_range(10, 10)) == list(range(10))


def test_shuffled_keeps_all_items() -> None:
    assert sorted(KeyedGenerator("shuffle").shuffled("aabcd")) == list("aabcd")
