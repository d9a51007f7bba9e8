from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from growtx.evaluate import paper_protocol
from growtx.evaluate.paper_protocol import sample_first_characters, score_letters


class Favourite(torch.nn.Module):
    """Says one token after every prompt, except that a space comes first."""

    def __init__(self, tokenizer: Any, first: str, then: str) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"max_position_embeddings": 32})()
        self.ids = [tokenizer.convert_tokens_to_ids(first), tokenizer.convert_tokens_to_ids(then)]

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = torch.zeros(*input_ids.shape, 400)
        after_space = input_ids == self.ids[0]
        logits[..., self.ids[0]] = torch.where(after_space, 0.0, 60.0)
        logits[..., self.ids[1]] = torch.where(after_space, 60.0, 0.0)
        return type("Output", (), {"logits": logits})()


def doc(answer_index: int, num_choices: int = 4) -> dict[str, Any]:
    return {"letter_prompt": "Answer:", "letters": list("ABCD"[:num_choices]), "answer_index": answer_index}


def test_the_first_character_that_is_no_space_is_the_answer(tokenizer: Any) -> None:
    model = Favourite(tokenizer, " ", "B")
    assert sample_first_characters(model, tokenizer, ["Anna lives", "Answer:"], 3) == [["B"] * 3] * 2


def test_always_the_same_letter_scores_its_share_and_never_fails(tokenizer: Any) -> None:
    docs = [doc(at % 4) for at in range(8)]
    score = score_letters(Favourite(tokenizer, " ", "B"), tokenizer, "mmlu", docs, depth=1, num_runs=3)
    assert (score.value, score.chance, score.format_failures, score.sigma) == (0.25, 0.25, 0.0, 0.0)
    assert score.low is not None and score.low < 0.25 < (score.high or 0)


def test_what_is_no_letter_fails(tokenizer: Any) -> None:
    score = score_letters(Favourite(tokenizer, " ", "t"), tokenizer, "mmlu", [doc(0)], depth=1, num_runs=2)
    assert (score.value, score.format_failures) == (0.0, 1.0)


def test_samples_do_not_depend_on_the_batch(model: Any, tokenizer: Any) -> None:
    prompts = ["Anna", "Where does Anna live? Answer:", "安娜住在哪里？", "Кто"]
    one, four = (sample_first_characters(model, tokenizer, prompts, 5, batch_size=size, seed=3) for size in (1, 4))
    assert one == four


def test_samples_follow_the_models_distribution(model: Any, tokenizer: Any) -> None:
    ids = tokenizer.encode("Anna lives in")
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([ids])).logits[0, -1], -1).numpy()
    first = [tokenizer.decode([token]).strip()[:1] for token in range(400)]
    wanted = sum(p for p, char in zip(probabilities, first, strict=True) if char and char.isascii())
    (drawn,) = sample_first_characters(model, tokenizer, ["Anna lives in"], 600)
    blank = sum(p for p, char in zip(probabilities, first, strict=True) if not char)
    share = np.mean([char.isascii() for char in drawn if char])
    assert share == pytest.approx(wanted / (1 - blank), abs=0.06)


def test_sigma_is_the_standard_deviation_of_the_runs_as_a_sample(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [["A", "B", "A"], ["A", "C", "x"]]
    monkeypatch.setattr(paper_protocol, "sample_first_characters", lambda *_, **__: drawn)
    score = score_letters(Favourite(tokenizer, " ", "B"), tokenizer, "mmlu", [doc(0), doc(0)], depth=1, num_runs=3)
    assert score.sigma == pytest.approx(0.5)  # of 1, 0 and 0.5
    assert score.value == pytest.approx(0.5)
    assert score.format_failures == pytest.approx(1 / 6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_samples_follow_the_distribution_at_a_temperature(tokenizer: Any, temperature: float) -> None:
    model = Favourite(tokenizer, "A", "B")
    logits = torch.zeros(1, 1, 400)
    logits[..., model.ids[0]], logits[..., model.ids[1]] = 8.0, 7.0
    model.forward = lambda input_ids: type("Output", (), {"logits": logits.expand(*input_ids.shape, 400)})()  # type: ignore[method-assign]
    first = float(torch.softmax(logits[0, 0] / temperature, -1)[model.ids[0]])
    (drawn,) = sample_first_characters(model, tokenizer, ["Answer:"], 1000, temperature=temperature)
    assert drawn.count("A") / 1000 == pytest.approx(first, abs=0.05)
