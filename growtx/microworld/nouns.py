"""Words with their forms, and sentences that put them into the right one.

English, Russian and Chinese need different things of a word: articles, cases, measure words. A `Noun` is the
dictionary form and carries the others; a wording names the form it wants, as in `{city.where}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache


class Noun(str):
    """A word or name in its dictionary form.

    Attributes:
        gen, dat, acc, ins: Russian cases.
        where, to: place and direction with their preposition ("в Париже", "в Париж"; "in Paris", "to Paris").
        one, the: with article or measure word ("an umbrella", "the umbrella"; "一把雨伞").
        woman: grammatical gender of a person's name.
    """

    gen: str
    dat: str
    acc: str
    ins: str
    where: str
    to: str
    one: str
    the: str
    woman: bool

    def __new__(cls, word: str, **forms: str | bool) -> Noun:
        noun = super().__new__(cls, word)
        noun.__dict__.update(forms)
        return noun


_ALTERNATIVE = re.compile(r"\[([^|\]]*)\|([^\]]*)\](b?)")


@cache
def _agreeing(wording: str, woman_a: bool, woman_b: bool) -> str:
    """Resolve `[masculine|feminine]` (agrees with `a`) and `[masculine|feminine]b` (agrees with `b`)."""
    return _ALTERNATIVE.sub(lambda match: match[2 if (woman_b if match[3] else woman_a) else 1], wording)


def sentence(wording: str, slots: Mapping[str, object]) -> str:
    """Fill a wording. `[..|..]` agrees with the gender of slot `a`, `[..|..]b` with that of slot `b`."""
    woman_a = getattr(slots.get("a"), "woman", False)
    woman_b = getattr(slots.get("b"), "woman", False)
    text = _agreeing(wording, woman_a, woman_b).format_map(slots)  # type: ignore[arg-type]
    return text[:1].upper() + text[1:]


_VELAR = "гкх"
_HUSHING = "жшчщ"


def russian_given_name(name: str, woman: bool) -> Noun:
    """A given name of the regular declensions: women's in -а, -я; men's in a consonant, -й, -ь."""
    if not woman:
        return _masculine(name)
    stem, last = name[:-1], name[-1]
    assert last in "ая", name
    if last == "а":
        genitive, dative, accusative = ("и" if stem[-1] in _VELAR + _HUSHING else "ы"), "е", "у"
    else:
        genitive, dative, accusative = "и", ("и" if stem[-1] == "и" else "е"), "ю"
    return Noun(name, woman=True, gen=stem + genitive, dat=stem + dative, acc=stem + accusative)


def russian_family_name(name: str, woman: bool, *, native: bool) -> Noun:
    """A family name: Russian ones in -ов, -ев, -ин (`native`) decline for both, foreign ones only for men.

    Foreign names that end in a vowel do not decline at all.
    """
    if native and woman:
        return Noun(name + "а", woman=True, gen=name + "ой", dat=name + "ой", acc=name + "у")
    if not native and (woman or name[-1] in "аеиоу"):
        return Noun(name, woman=woman, gen=name, dat=name, acc=name)
    return _masculine(name)


def _masculine(name: str) -> Noun:
    if name[-1] in "йь":
        stem, genitive, dative = name[:-1], "я", "ю"
    else:
        stem, genitive, dative = name, "а", "у"
    return Noun(name, woman=False, gen=stem + genitive, dat=stem + dative, acc=stem + genitive)
