"""Short stories: running text with people, things and places that come back, worded alike in three languages.

Slots: `a` and `b` are two people (given names), `s` the pronoun for `a`, `thing`, `spot` and `city`, `food`, `weather`,
`weekday`, `n` (a number of minutes, years or euros that Russian counts in the genitive plural).
"""

from __future__ import annotations

from collections.abc import Sequence

from growtx.generator import KeyedGenerator
from growtx.microworld.facts import in_language
from growtx.microworld.lexicon import Lexicon
from growtx.microworld.nouns import sentence
from growtx.microworld.wordings import Wording

COUNTED = (5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 45, 50)  # Russian counts these in the genitive plural

OPENING: tuple[Wording, ...] = (
    (
        "It was {weather} {city.where}, and {a} went {spot.to}.",
        "{city.where} {weather}, и {a} отправил[ся|ась] {spot.to}.",
        "{city}{weather}，{a}{spot.to}。",
    ),
    (
        "{weekday} {a} left the house early and walked {spot.to}.",
        "{weekday} {a} рано выш[ел|ла] из дома и отправил[ся|ась] {spot.to}.",
        "{weekday}，{a}一早出门{spot.to}。",
    ),
    (
        "{a} had lived {city.where} for {n} years and knew every corner {spot.where}.",
        "{a} жил[|а] {city.where} уже {n} лет и знал[|а] каждый уголок {spot.where}.",
        "{a}在{city}住了{n}年，{spot}的每个角落都很熟悉。",
    ),
    (
        "In the evenings {a} and {b} used to meet {spot.where}.",
        "По вечерам {a} и {b} обычно встречались {spot.where}.",
        "{a}和{b}晚上常常在{spot}见面。",
    ),
    (
        "{weekday} a letter from {b} arrived, and {a} hurried {spot.to}.",
        "{weekday} пришло письмо от {b.gen}, и {a} поспешил[|а] {spot.to}.",
        "{weekday}，{b}的信到了，{a}连忙{spot.to}。",
    ),
)
EVENT: tuple[Wording, ...] = (
    (
        "There {s} found {thing.one} under a bench.",
        "Там {s} наш[ёл|ла] под скамейкой {thing.acc}.",
        "{s}在那里的长椅下发现了{thing.one}。",
    ),
    (
        "There {s} bought {thing.one} and {food} for {b}.",
        "Там {s} купил[|а] {thing.acc} и {food} для {b.gen}.",
        "{s}在那里给{b}买了{thing.one}和{food}。",
    ),
    (
        "On the way {s} saw {b} carrying {thing.one}.",
        "По дороге {s} увидел[|а], как {b} несёт {thing.acc}.",
        "路上{s}看见{b}拿着{thing.one}。",
    ),
)
COMPLICATION: tuple[Wording, ...] = (
    (
        "But {s} had forgotten {thing.the} at home and had to go back.",
        "Но {s} забыл[|а] {thing.acc} дома и долж[ен был|на была] вернуться.",
        "可是{s}把{thing}忘在家里，只好回去拿。",
    ),
    (
        "For {n} minutes {s} waited for {b}, who had promised to bring {thing.one}.",
        "{n} минут {s} ждал[|а] {b.acc}: {b} обещал[|а]b принести {thing.acc}.",
        "{s}等了{b}{n}分钟，因为{b}答应带{thing.one}来。",
    ),
    (
        "Suddenly it began to rain, and {s} hid {thing.the} under the coat.",
        "Вдруг начался дождь, и {s} спрятал[|а] {thing.acc} под пальто.",
        "突然下起雨来，{s}把{thing}藏在大衣下面。",
    ),
)
TALK: tuple[Wording, ...] = (
    (
        "“Have you seen my {thing}?” asked {a}. “I think I saw it {spot.where},” answered {b}.",
        "— Ты не видел[|а]b {thing.acc}? — спросил[|а] {a}. — Кажется, видел[|а]b {spot.where}, — ответил[|а]b {b}.",
        "“你看见我的{thing}了吗？”{a}问。“好像在{spot}看见过。”{b}回答。",
    ),
    (
        "“Let us go {spot.to} together,” said {b}. “First I must fetch {thing.the},” answered {a}.",
        "— Пойдём вместе {spot.to}, — сказал[|а]b {b}. — Сначала я заберу {thing.acc}, — ответил[|а] {a}.",
        "“我们一起{spot.to}吧。”{b}说。“我得先去取{thing}。”{a}回答。",
    ),
    (
        "“How much is {thing.the}?” asked {a}. “{n} euros,” said the old man {spot.where}.",
        "— Сколько стоит {thing}? — спросил[|а] {a}. — {n} евро, — сказал старик {spot.where}.",
        "“{thing}多少钱？”{a}问。“{n}欧元。”{spot}的老人说。",
    ),
    (
        "“I left {food} {spot.where},” said {b}. “Then we eat something else,” laughed {a}.",
        "— Я оставил[|а]b {food} {spot.where}, — сказал[|а]b {b}. — Тогда съедим что-то другое, — засмеял[ся|ась] {a}.",
        "“我把{food}落在{spot}了。”{b}说。“那我们吃点别的吧。”{a}笑着说。",
    ),
    (
        "“Who gave you {thing.the}?” asked {b}. {a} only smiled and said nothing.",
        "— Кто подарил тебе {thing.acc}? — спросил[|а]b {b}. {a} только улыбнул[ся|ась] и промолчал[|а].",
        "“{thing}是谁送给你的？”{b}问。{a}只是笑了笑，没有说话。",
    ),
)
TURN: tuple[Wording, ...] = (
    (
        "In the end {b} gave {thing.the} to {a}.",
        "В конце концов {b} отдал[|а]b {thing.acc} {a.dat}.",
        "最后，{b}把{thing}交给了{a}。",
    ),
    (
        "{a} thanked {b} and put {thing.the} into the bag.",
        "{a} поблагодарил[|а] {b.acc} и положил[|а] {thing.acc} в сумку.",
        "{a}谢过{b}，把{thing}放进了包里。",
    ),
    (
        "They drank coffee {spot.where} and talked until the evening.",
        "Они пили кофе {spot.where} и разговаривали до вечера.",
        "他们在{spot}喝咖啡，一直聊到晚上。",
    ),
    (
        "{b} lived nearby and invited {a} to dinner.",
        "{b} жил[|а]b неподалёку и пригласил[|а]b {a.acc} на ужин.",
        "{b}住在附近，便邀请{a}去吃晚饭。",
    ),
    (
        "{b} did not want {thing.the} and went home without a word.",
        "{b} не захотел[|а]b взять {thing.acc} и молча уш[ёл|ла]b домой.",
        "{b}不想要{thing}，一言不发地回家了。",
    ),
)
CLOSING: tuple[Wording, ...] = (
    (
        "At night {a} wrote about it in a diary.",
        "Ночью {a} записал[|а] всё это в дневник.",
        "夜里，{a}把这件事写进了日记。",
    ),
    (
        "{a} came home tired but happy.",
        "{a} вернул[ся|ась] домой устал[ым|ой], но счастлив[ым|ой].",
        "{a}回到家，又累又高兴。",
    ),
    (
        "Since that day {a} and {b} have been friends.",
        "С того дня {a} и {b} дружат.",
        "从那天起，{a}和{b}成了朋友。",
    ),
    (
        "{a} put {thing.the} on the shelf and went to bed.",
        "{a} положил[|а] {thing.acc} на полку и л[ёг|егла] спать.",
        "{a}把{thing}放到架子上，然后睡觉去了。",
    ),
    (
        "The next morning nobody could find {thing.the}.",
        "На следующее утро никто не мог найти {thing.acc}.",
        "第二天早上，谁也找不到{thing}了。",
    ),
)
PLOT = (OPENING, EVENT, TALK, COMPLICATION, TURN, CLOSING)


def tell(words: Lexicon, generator: KeyedGenerator, plot: Sequence[tuple[Wording, ...]] = PLOT) -> list[str]:
    """A story: one sentence for each part of the plot, about the same people and things."""
    a, b = generator.sample(words.given, 2)
    slots: dict[str, object] = {
        "a": a,
        "b": b,
        "s": words.pronoun(a.woman),
        "thing": generator.choice(words.things),
        "spot": generator.choice(words.spots),
        "city": generator.choice(words.cities),
        "food": generator.choice(words.foods),
        "weather": generator.choice(words.weather),
        "weekday": generator.choice(words.weekdays),
        "n": generator.choice(COUNTED),
    }
    return [sentence(in_language(generator.choice(part), words.language), slots) for part in plot]
