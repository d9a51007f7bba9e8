from __future__ import annotations

import pytest

from growtx.microworld.nouns import Noun, russian_family_name, russian_given_name, sentence


@pytest.mark.parametrize(
    ("name", "woman", "genitive", "dative", "accusative"),
    [
        ("Анна", True, "Анны", "Анне", "Анну"),
        ("Ольга", True, "Ольги", "Ольге", "Ольгу"),
        ("Мария", True, "Марии", "Марии", "Марию"),
        ("Лея", True, "Леи", "Лее", "Лею"),
        ("Иван", False, "Ивана", "Ивану", "Ивана"),
        ("Игорь", False, "Игоря", "Игорю", "Игоря"),
        ("Дмитрий", False, "Дмитрия", "Дмитрию", "Дмитрия"),
        ("Николай", False, "Николая", "Николаю", "Николая"),
    ],
)
def test_russian_given_names_decline(name: str, woman: bool, genitive: str, dative: str, accusative: str) -> None:
    noun = russian_given_name(name, woman)
    assert (noun, noun.gen, noun.dat, noun.acc) == (name, genitive, dative, accusative)


@pytest.mark.parametrize(
    ("noun", "cases"),
    [
        (russian_family_name("Иванов", False, native=True), ("Иванов", "Иванова", "Иванову")),
        (russian_family_name("Иванов", True, native=True), ("Иванова", "Ивановой", "Ивановой")),
        (russian_family_name("Ильин", True, native=True), ("Ильина", "Ильиной", "Ильиной")),
        (russian_family_name("Вебер", False, native=False), ("Вебер", "Вебера", "Веберу")),
        (russian_family_name("Вебер", True, native=False), ("Вебер", "Вебер", "Вебер")),
        (russian_family_name("Фогель", False, native=False), ("Фогель", "Фогеля", "Фогелю")),
        (russian_family_name("Шевченко", False, native=False), ("Шевченко", "Шевченко", "Шевченко")),
        (russian_family_name("Дюбуа", False, native=False), ("Дюбуа", "Дюбуа", "Дюбуа")),
    ],
)
def test_russian_family_names_decline(noun: Noun, cases: tuple[str, str, str]) -> None:
    assert (noun, noun.gen, noun.dat) == cases


def test_sentences_agree_with_the_gender_of_each_person() -> None:
    anna, ivan = Noun("Анна", woman=True), Noun("Иван", woman=False)
    wording = "{a} приш[ёл|ла], {b} уш[ёл|ла]b."
    assert sentence(wording, {"a": anna, "b": ivan}) == "Анна пришла, Иван ушёл."
    assert sentence(wording, {"a": ivan, "b": anna}) == "Иван пришёл, Анна ушла."


def test_sentences_begin_with_a_capital() -> None:
    assert sentence("{a.where} it rains.", {"a": Noun("Paris", where="in Paris")}) == "In Paris it rains."
