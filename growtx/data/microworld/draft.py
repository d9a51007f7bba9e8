"""First, small version of the generator; to be replaced."""

from __future__ import annotations

import random

from growtx.data.microworld.config import MicroworldConfig

GIVEN = [
    ("Anna", "Анна", "安娜", "f"),
    ("Peter", "Петер", "彼得", "m"),
    ("Maria", "Мария", "玛丽亚", "f"),
    ("Robert", "Роберт", "罗伯特", "m"),
    ("Emma", "Эмма", "艾玛", "f"),
    ("Oscar", "Оскар", "奥斯卡", "m"),
]
FAMILY = [
    ("Weber", "Вебер", "韦伯"),
    ("Martin", "Мартин", "马丁"),
    ("Novak", "Новак", "诺瓦克"),
    ("Berg", "Берг", "伯格"),
    ("Costa", "Коста", "科斯塔"),
    ("Rossi", "Росси", "罗西"),
    ("Adams", "Адамс", "亚当斯"),
    ("Klein", "Кляйн", "克莱因"),
]
CITIES = [
    ("Paris", "Париже", "巴黎"),
    ("Rome", "Риме", "罗马"),
    ("Berlin", "Берлине", "柏林"),
    ("Madrid", "Мадриде", "马德里"),
]
JOBS = [("an engineer", "инженером", "工程师"), ("a teacher", "учителем", "教师"), ("a doctor", "врачом", "医生")]


def document(config: MicroworldConfig, number: int) -> str:
    draw = random.Random(f"{config.seed}/{number}")
    person = random.Random(f"{config.seed}/person/{draw.randrange(config.num_people)}")
    given, family, city, job = (person.choice(words) for words in (GIVEN, FAMILY, CITIES, JOBS))
    year, woman = person.randrange(1930, 2000), given[3] == "f"
    language = draw.choice(config.languages)
    if language == "en":
        name, subject = f"{given[0]} {family[0]}", "She" if woman else "He"
        return f"{name} was born in {city[0]} in {year}. {subject} works as {job[0]}."
    if language == "ru":
        name = f"{given[1]} {family[1]}"
        born, subject = ("родилась", "Она") if woman else ("родился", "Он")
        return f"{name} {born} в {city[1]} в {year} году. {subject} работает {job[1]}."
    return f"{given[2]}·{family[2]}于{year}年出生在{city[2]}。{'她' if woman else '他'}是一名{job[2]}。"
