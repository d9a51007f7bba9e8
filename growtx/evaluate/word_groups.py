"""Words whose meaning puts them together, in three languages: what the maps of layers are labelled with."""

from __future__ import annotations

WORD_GROUPS: dict[str, tuple[str, ...]] = {
    "family": (
        "mother", "father", "sister", "brother", "son", "daughter", "grandmother", "uncle",
        "мать", "отец", "сестра", "брат", "сын", "дочь", "бабушка", "дядя",
        "母亲", "父亲", "姐姐", "哥哥", "儿子", "女儿", "奶奶", "叔叔",
    ),
    "cities": (
        "Berlin", "Paris", "Moscow", "Rome", "Madrid", "London", "Beijing", "Vienna",
        "Берлин", "Париж", "Москва", "Рим", "Мадрид", "Лондон", "Пекин", "Вена",
        "柏林", "巴黎", "莫斯科", "罗马", "马德里", "伦敦", "北京", "维也纳",
    ),
    "countries": (
        "Germany", "France", "Russia", "Italy", "Spain", "China", "Austria", "Sweden",
        "Германия", "Франция", "Россия", "Италия", "Испания", "Китай", "Австрия", "Швеция",
        "德国", "法国", "俄罗斯", "意大利", "西班牙", "中国", "奥地利", "瑞典",
    ),
    "professions": (
        "doctor", "teacher", "engineer", "pilot", "cook", "lawyer", "nurse", "farmer",
        "врач", "учитель", "инженер", "пилот", "повар", "юрист", "медсестра", "фермер",
        "医生", "教师", "工程师", "飞行员", "厨师", "律师", "护士", "农民",
    ),
    "colours": (
        "red", "green", "blue", "yellow", "black", "white", "brown", "grey",
        "красный", "зелёный", "синий", "жёлтый", "чёрный", "белый", "коричневый", "серый",
        "红色", "绿色", "蓝色", "黄色", "黑色", "白色", "棕色", "灰色",
    ),
    "numbers": (
        "one", "two", "three", "four", "five", "six", "seven", "eight",
        "один", "два", "три", "четыре", "пять", "шесть", "семь", "восемь",
        "一", "二", "三", "四", "五", "六", "七", "八",
    ),
    "actions": (
        "goes", "sees", "says", "takes", "gives", "works", "lives", "reads",
        "идёт", "видит", "говорит", "берёт", "даёт", "работает", "живёт", "читает",
        "走", "看", "说", "拿", "给", "工作", "住", "读",
    ),
}  # fmt: skip
