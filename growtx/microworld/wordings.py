"""How facts about people and places are worded: (English, Russian, Chinese), the same thing said in each.

Slots: `a` is the person, `s` the person or a pronoun (only at the start of a sentence or where a pronoun may stand in
all three languages), `b` the mentor. `[m|f]` agrees with the gender of `a`, `[m|f]b` with that of `b`; see `nouns`.
"""

from __future__ import annotations

from typing import Literal

Wording = tuple[str, str, str]
Fact = Literal["birth", "study", "work", "hobby", "mentor"]

PERSON: dict[Fact, tuple[Wording, ...]] = {
    "birth": (
        (
            "{s} was born {city.where} on {date}.",
            "{s} родил[ся|ась] {city.where} {date}.",
            "{s}于{date}出生在{city}。",
        ),
        (
            "{s} is a native of {city} and was born on {date}.",
            "{s} родом из {city.gen}, дата рождения — {date}.",
            "{s}是{city}人，生于{date}。",
        ),
        (
            "On {date}, {a} came into the world {city.where}.",
            "{date} {city.where} появил[ся|ась] на свет {a}.",
            "{date}，{a}在{city}来到人世。",
        ),
        (
            "The birthplace of {a} is {city}, and the date of birth is {date}.",
            "Место рождения {a.gen} — {city}, дата рождения — {date}.",
            "{a}的出生地是{city}，出生日期是{date}。",
        ),
        (
            "{city} is the home town of {a}, who was born on {date}.",
            "{city} — родной город {a.gen}, день рождения — {date}.",
            "{city}是{a}的家乡，其生日是{date}。",
        ),
    ),
    "study": (
        (
            "{s} studied at the University of {study}.",
            "{s} учил[ся|ась] в университете {study.gen}.",
            "{s}曾就读于{study}大学。",
        ),
        (
            "{s} graduated from the University of {study}.",
            "{s} окончил[|а] университет {study.gen}.",
            "{s}毕业于{study}大学。",
        ),
        (
            "{a} holds a degree from the University of {study}.",
            "У {a.gen} диплом университета {study.gen}.",
            "{a}拥有{study}大学的学位。",
        ),
        (
            "{s} spent the student years at the University of {study}.",
            "{s} пров[ёл|ела] студенческие годы в университете {study.gen}.",
            "{s}在{study}大学度过了学生时代。",
        ),
        (
            "The University of {study} awarded {a} a degree.",
            "Университет {study.gen} присвоил {a.dat} учёную степень.",
            "{study}大学授予{a}学位。",
        ),
    ),
    "work": (
        (
            "{s} works as {job.one} at {company}.",
            "{s} работает {job.ins} в компании «{company}».",
            "{s}在{company}担任{job}。",
        ),
        (
            "{s} is {job.one} and is employed by {company}.",
            "{s} — {job}, место работы — компания «{company}».",
            "{s}是{job.one}，受雇于{company}。",
        ),
        (
            "At {company}, {a} is employed as {job.one}.",
            "В компании «{company}» {a} работает {job.ins}.",
            "在{company}，{a}的职务是{job}。",
        ),
        (
            "The employer of {a} is {company}, and the profession is {job}.",
            "Работодатель {a.gen} — компания «{company}», профессия — {job}.",
            "{a}的工作单位是{company}，职业是{job}。",
        ),
        (
            "{company} employs {a} as {job.one}.",
            "Компания «{company}» наняла {a.acc}, профессия — {job}.",
            "{company}聘用{a}为{job}。",
        ),
    ),
    "hobby": (
        ("{s} likes {hobby}.", "{s} любит {hobby}.", "{s}喜欢{hobby}。"),
        ("In the evenings {a} enjoys {hobby}.", "По вечерам {a} любит {hobby}.", "晚上{a}喜欢{hobby}。"),
        ("The hobby of {a} is {hobby}.", "Увлечение {a.gen} — {hobby}.", "{a}的爱好是{hobby}。"),
        ("{s} spends free time {hobby}.", "В свободное время {a} предпочитает {hobby}.", "{s}闲暇时常常{hobby}。"),
        (
            "Nothing pleases {a} more than {hobby}.",
            "Больше всего {a.dat} нравится {hobby}.",
            "{a}最喜欢的事就是{hobby}。",
        ),
    ),
    "mentor": (
        ("{s} learned from {b}.", "{s} учил[ся|ась] у {b.gen}.", "{s}师从{b}。"),
        ("The mentor of {a} is {b}.", "Наставник {a.gen} — {b}.", "{a}的导师是{b}。"),
        ("{b} is the mentor of {a}.", "{b} — наставник {a.gen}.", "{b}是{a}的导师。"),
        ("{a} has {b} as a mentor.", "Для {a.gen} наставником стал[|а]b {b}.", "{a}拜{b}为导师。"),
        ("It was {b} who taught {a} the trade.", "Ремеслу {a.acc} обучил[|а]b {b}.", "{a}的本领是{b}教的。"),
    ),
}

# Slots: city, country, capital, company.
CITY: tuple[Wording, ...] = (
    ("{city} is a city {country.where}.", "{city} — город {country.where}.", "{city}是{country}的一座城市。"),
    ("The city of {city} lies {country.where}.", "Город {city} находится {country.where}.", "{city}市位于{country}。"),
    (
        "Travellers find {city} {country.where}.",
        "Путешественники найдут {city} {country.where}.",
        "旅行者可以在{country}找到{city}。",
    ),
    ("{city} belongs to {country}.", "{city} относится к городам {country.gen}.", "{city}属于{country}。"),
    (
        "One of the cities of {country} is {city}.",
        "Один из городов {country.gen} — {city}.",
        "{country}的城市之一是{city}。",
    ),
)
CAPITAL: tuple[Wording, ...] = (
    ("The capital of {country} is {capital}.", "Столица {country.gen} — {capital}.", "{country}的首都是{capital}。"),
    ("{capital} is the capital of {country}.", "{capital} — столица {country.gen}.", "{capital}是{country}的首都。"),
    (
        "Of all cities of {country}, {capital} is the capital.",
        "Среди городов {country.gen} столицей является {capital}.",
        "在{country}的城市中，首都是{capital}。",
    ),
)
COMPANY: tuple[Wording, ...] = (
    (
        "{company} has its head office {city.where}.",
        "Головной офис компании «{company}» находится {city.where}.",
        "{company}的总部设在{city}。",
    ),
    (
        "{company} is a company from {city}.",
        "«{company}» — компания из {city.gen}.",
        "{company}是一家来自{city}的公司。",
    ),
    (
        "The company {company} is based {city.where}.",
        "Компания «{company}» работает {city.where}.",
        "{company}位于{city}。",
    ),
    (
        "{city} is the seat of the company {company}.",
        "{city} — место, где расположена компания «{company}».",
        "{city}是{company}的所在地。",
    ),
)
