"""Random numbers from a keyed hash: the same on every platform, and any document can be made without the others."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

_WORDS = struct.Struct("<16I")


class Draws:
    """A stream of random numbers that is a pure function of its key."""

    __slots__ = ("_block", "_key", "_words")

    def __init__(self, *key: int | str) -> None:
        self._key = "/".join(map(str, key))
        self._block = 0
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """An integer in 0..bound-1; bound is at most 2**32 (the bias is below bound / 2**32)."""
        if not self._words:
            digest = hashlib.blake2b(f"{self._key}#{self._block}".encode()).digest()
            self._words = list(_WORDS.unpack(digest))
            self._block += 1
        return self._words.pop() * bound >> 32

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different positions of `items`, in random order."""
        return [items[index] for index in self.distinct(len(items), count)]

    def distinct(self, bound: int, count: int) -> list[int]:
        """`count` different integers in 0..bound-1, in random order, without touching the others."""
        assert count <= bound
        moved: dict[int, int] = {}
        result = []
        for position in range(count):  # Fisher-Yates on a list that exists only where it was changed
            other = position + self.below(bound - position)
            result.append(moved.get(other, other))
            moved[other] = moved.get(position, position)
        return result

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All items in random order."""
        return self.sample(items, len(items))
