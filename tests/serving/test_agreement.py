"""Bits per byte are the same by growtx, by lm-eval on the saved model or over HTTP, and by transformers by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from growtx.data.tokenizer import document_ids, load_tokenizer
from growtx.evaluate.bits_per_byte import of_documents
from growtx.models import GrowtxForCausalLM
from growtx.models.saving import save_directory
from growtx.serving.engine import Engines
from growtx.serving.settings import parse_settings
from tests.serving.conftest import TEXT, make_model
from tests.serving.local_server import serving

lm_eval = pytest.importorskip("lm_eval")
CONTEXT = 64
WORDS = TEXT.split()
DOCUMENTS = [" ".join(WORDS[(3 * i + j * j) % len(WORDS)] for j in range(4 + 5 * i)) for i in range(12)]
SHORT = DOCUMENTS[:3]  # over HTTP, lm-eval cuts longer texts into windows of its own


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> GrowtxForCausalLM:
    """Trained for some steps on documents with their separator, so that what stands before a document matters."""
    made = make_model(tokenizer, max_position_embeddings=CONTEXT, initializer_range=0.05).train()
    ids = [token for document in DOCUMENTS * 3 for token in document_ids(tokenizer, document)]
    windows = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    for step in range(60):
        batch = windows[(4 * step) % max(1, len(windows) - 4) :][:4]
        made(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return made.eval()


@pytest.fixture(scope="module")
def saved(model: GrowtxForCausalLM, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    tokenizer.model_max_length = CONTEXT
    save_directory(model, tokenizer, path)
    return path


def bits_per_byte(nats: float, documents: list[str]) -> float:
    return -nats / math.log(2) / sum(len(document.encode()) for document in documents)


def rolling(lm: Any, documents: list[str]) -> float:
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(documents)]
    return bits_per_byte(sum(lm.loglikelihood_rolling(requests, disable_tqdm=True)), documents)


def by_hand(saved: Path, documents: list[str]) -> float:
    """With transformers alone: every token once, in windows of the context; the last one has its full context."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    model, tokenizer = GrowtxForCausalLM.from_pretrained(saved).eval(), load_tokenizer(str(saved))
    nats = 0.0
    for document in documents:
        ids = tokenizer(document)["input_ids"]
        for pair in get_rolling_token_windows(ids, tokenizer.bos_token_id, CONTEXT, 1):
            context, targets = make_disjoint_window(pair)
            with torch.no_grad():
                log_p_TV = model(torch.tensor([[*context, *targets][:-1]])).logits[0].double().log_softmax(-1)
            nats += sum(float(log_p_TV[-len(targets) + i, token]) for i, token in enumerate(targets))
    return bits_per_byte(nats, documents)


def test_growtx_lm_eval_and_transformers_agree(model: GrowtxForCausalLM, tokenizer: Any, saved: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    ours = of_documents(model, tokenizer, DOCUMENTS, context_length=CONTEXT).value
    theirs = rolling(HFLM(pretrained=str(saved), device="cpu", batch_size=2), DOCUMENTS)
    assert max(len(tokenizer(document)["input_ids"]) for document in DOCUMENTS) > 2 * CONTEXT, (
        "long ones are among them"
    )
    assert theirs == pytest.approx(ours, abs=1e-4)
    assert by_hand(saved, DOCUMENTS) == pytest.approx(ours, abs=1e-4)


@pytest.fixture(scope="module")
def address(model: GrowtxForCausalLM, tokenizer: Any) -> Iterator[str]:
    engines = Engines({None: model}, tokenizer, kv_cache_gib=0.05)
    with serving(engines, parse_settings({"model": "tiny"})) as address:
        yield address
    engines.stop()


def test_the_endpoint_agrees_with_them(
    model: GrowtxForCausalLM, tokenizer: Any, saved: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    lm = LocalCompletionsAPI(
        model="tiny", base_url=f"{address}/v1/completions", tokenizer=str(saved), tokenizer_backend="huggingface",
        max_length=CONTEXT, tokenized_requests=True, num_concurrent=1,
    )  # fmt: skip
    ours = of_documents(model, tokenizer, SHORT, context_length=CONTEXT).value
    assert rolling(lm, SHORT) == pytest.approx(ours, abs=1e-4)


def test_the_first_token_of_a_document_costs_less_than_a_guess(model: GrowtxForCausalLM, tokenizer: Any) -> None:
    first = of_documents(model, tokenizer, [document[:1] for document in DOCUMENTS], context_length=CONTEXT)
    assert first.loss < math.log(len(tokenizer)) - 1
