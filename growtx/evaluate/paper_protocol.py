"""The paper's way to score multiple choice: sample a text, take its first character as the answer, average ten runs.

A model that does not answer with a letter at all fails, so scores fall below chance (arXiv 2507.07129, and the
results published with it). Reported beside log-likelihoods, with the share of such failures, it shows how much of a
score is format.

Shapes: B prompts of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from growtx.evaluate.intervals import Floats, bootstrap_mean
from growtx.evaluate.results import Score

MAX_TOKENS = 4  # sampled at most, until a character other than a space appears


def score_letters(
    model: Any, tokenizer: Any, task: str, docs: Sequence[dict[str, Any]], *, depth: int, num_runs: int, **sampling: Any
) -> Score:
    """Share of sampled first characters that are the right letter, with sigma between runs and format failures.

    Args:
        docs: questions with `letter_prompt`, `letters` and `answer_index`.
        sampling: temperature, batch_size and seed, see `sample_first_characters`.
    """
    samples = sample_first_characters(model, tokenizer, [doc["letter_prompt"] for doc in docs], num_runs, **sampling)
    right = np.array(
        [
            [char == doc["letters"][doc["answer_index"]] for char in drawn]
            for doc, drawn in zip(docs, samples, strict=True)
        ]
    )
    failed = [char not in doc["letters"] for doc, drawn in zip(docs, samples, strict=True) for char in drawn]
    num_choices = np.array([len(doc["letters"]) for doc in docs])
    return Score(
        task=task,
        metric="acc",
        protocol="sampled letter",
        depth=depth,
        **bootstrap_mean(right.mean(axis=1))._asdict(),
        num_items=len(docs),
        chance=float((1 / num_choices).mean()),
        format_failures=sum(failed) / len(failed),
        sigma=float(right.mean(axis=0).std(ddof=1)) if num_runs > 1 else None,
        num_runs=num_runs,
    )


def sample_first_characters(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    num_runs: int,
    *,
    temperature: float = 1.0,
    batch_size: int = 8,
    seed: int = 0,
) -> list[list[str]]:
    """The first non-space character of `num_runs` sampled continuations of each prompt ("" if there is none).

    All runs share the forward pass of their prompt: only continuations that begin with a space need another one.
    A sample is a function of seed, prompt and run, whatever the batch.
    """
    encoded = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    samples = [[_Sample(seed, prompt, run) for run in range(num_runs)] for prompt in range(len(prompts))]
    for _ in range(MAX_TOKENS):
        waiting: dict[tuple[int, ...], list[_Sample]] = {}
        for sample in itertools.chain.from_iterable(samples):
            if not sample.character:
                waiting.setdefault((sample.prompt, *sample.tokens), []).append(sample)
        rows = list(waiting)
        ids = [(*encoded[prompt], *tokens) for prompt, *tokens in rows]
        for at, cumulative_V in _next_token_distributions(model, ids, temperature, batch_size):
            for sample in waiting[rows[at]]:
                sample.draw(cumulative_V, tokenizer)
    return [[sample.character for sample in runs] for runs in samples]


class _Sample:
    """One continuation while it is drawn, with random numbers of its own."""

    def __init__(self, seed: int, prompt: int, run: int) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.character = ""
        self._generator = np.random.default_rng((seed, prompt, run))

    def draw(self, cumulative_V: Floats, tokenizer: Any) -> None:
        threshold = self._generator.random() * cumulative_V[-1]
        self.tokens.append(int(np.searchsorted(cumulative_V, threshold, side="right")))
        self.character = tokenizer.decode(self.tokens, skip_special_tokens=True).strip()[:1]


@torch.no_grad()
def _next_token_distributions(
    model: Any, rows: Sequence[Sequence[int]], temperature: float, batch_size: int
) -> Iterator[tuple[int, Floats]]:
    """Number of the row and cumulative probabilities [V] of the token after it; rows are cut on the left."""
    cut = [list(row)[-model.config.max_position_embeddings :] for row in rows]
    by_length = sorted(range(len(cut)), key=lambda index: len(cut[index]))
    device = next(model.parameters()).device
    for start in range(0, len(cut), batch_size):
        batch = by_length[start : start + batch_size]
        ids_BT = torch.zeros(len(batch), len(cut[batch[-1]]), dtype=torch.int64)
        for at, index in enumerate(batch):  # padded on the right, where a causal model does not look
            ids_BT[at, : len(cut[index])] = torch.tensor(cut[index])
        last_B = torch.tensor([len(cut[index]) - 1 for index in batch])
        logits_BV = model(input_ids=ids_BT.to(device)).logits[torch.arange(len(batch)), last_B].double().cpu()
        for index, logits_V in zip(batch, logits_BV, strict=True):
            yield index, torch.softmax(logits_V / temperature, -1).cumsum(-1).numpy()
