from __future__ import annotations

from growtx.microworld.forms import ExtractiveQA, MultipleChoice, Translation, prompt, solved, target

CHOICE = MultipleChoice("microworld/recall/en", "Where?", ("Rome", "Oslo", "Bern", "Lima"), 2)
PUZZLE = MultipleChoice("microworld/count/zh", "几个？", ("1", "2", "3", "4"), 0, "他们住在奥斯陆。")
READING = ExtractiveQA("microworld/reading/ru", "Анна родилась в Осло.", "Где?", ("Осло", "в Осло"))
TRANSLATION = Translation("microworld/translation/en-zh", "Good day.", "你好。", "en", "zh")


def test_multiple_choice_ends_where_the_letter_belongs() -> None:
    assert prompt(CHOICE, "en") == "Question: Where?\nA. Rome\nB. Oslo\nC. Bern\nD. Lima\nAnswer:"
    assert target(CHOICE) == "C"


def test_a_context_stands_before_the_question() -> None:
    assert solved(READING, "ru") == "Анна родилась в Осло.\nВопрос: Где?\nОтвет: Осло"


def test_a_wide_colon_takes_no_space_after_it() -> None:
    assert solved(PUZZLE, "zh").endswith("D. 4\n答案：A")
    assert solved(TRANSLATION, "zh") == "English: Good day.\n中文：你好。"
