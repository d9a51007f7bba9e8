"""Between HTTP and the engine: every setting of a request reaches the engine, over a backend that only listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from growtx.sampling import Sampling
from growtx.serving import api
from growtx.serving.api import create_app
from growtx.serving.errors import ApiError
from growtx.serving.requests import EngineError, Generation, ModelInfo, Token
from growtx.serving.settings import ServeSettings

CONTEXT = 32


class Listener:
    """Remembers what it is asked for, and answers with one token again and again."""

    def __init__(self, tokenizer: Any) -> None:
        self.asked: list[Generation] = []
        self.scored: list[tuple[int, ...]] = []
        self._token = tokenizer.encode("x", add_special_tokens=False)[0]
        self._card = ModelInfo(
            tokenizer.backend_tokenizer.to_str(), len(tokenizer), CONTEXT, (1, 2), ("a", "b"), ("mean", "mixture"),
            start_token_id=tokenizer.eos_token_id,
        )  # fmt: skip

    async def card(self) -> ModelInfo:
        return self._card

    async def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        self.asked.append(request)
        for left in range(request.max_tokens - 1, -1, -1):
            yield [Token(self._token, -0.5, (), None, None, None if left else "length")]
            await asyncio.sleep(0)

    async def score(self, token_ids: tuple[int, ...], sampling: Sampling, depth: int | None) -> list[Token]:
        self.scored.append(token_ids)
        return [Token(token, -1.0) for token in token_ids[1:]]

    async def metrics(self) -> str:
        return ""


@pytest.fixture
def backend(tokenizer: Any) -> Listener:
    return Listener(tokenizer)


@pytest.fixture
def client(backend: Listener) -> TestClient:
    return TestClient(create_app(backend, ServeSettings(model="runs/tiny", chat_template="transcript")))


class Saying(Listener):
    """Answers with a text."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        super().__init__(tokenizer)
        self._ids = tokenizer.encode(text, add_special_tokens=False)

    async def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        for token in self._ids:
            yield [Token(token)]
        yield [Token(self._token, finish_reason="length")]


@pytest.mark.parametrize(
    ("stop", "text"), [(None, "The fox"), (["quick"], "The fox"), (["fox", "x"], "The "), (["User"], "The fox\n")]
)
def test_a_transcript_ends_where_the_user_would_speak_again(tokenizer: Any, stop: Any, text: str) -> None:
    settings = ServeSettings(model="runs/tiny", chat_template="transcript")
    client = TestClient(create_app(Saying(tokenizer, " The fox\nUser: quick"), settings))
    said = {"messages": [{"role": "user", "content": "The"}], "max_tokens": 20, "stop": stop}
    (choice,) = client.post("/v1/chat/completions", json={"model": "tiny", **said}).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


def test_an_answer_that_nobody_waits_for_is_given_up() -> None:
    ends: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async def receive() -> dict[str, str]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def scenario() -> None:
        with pytest.raises(ApiError, match="closed the connection"):
            await asyncio.wait_for(api._cancel_on_disconnect(SimpleNamespace(receive=receive), work()), 5)

    asyncio.run(scenario())
    assert ends == ["cancelled"]


class Failing(Listener):
    """Is lost after two tokens."""

    async def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:
        for _ in range(2):
            yield [Token(self._token)]
        raise EngineError("lost")


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_an_error_in_the_middle_of_a_stream_is_its_last_event(tokenizer: Any, path: str) -> None:
    settings = ServeSettings(model="runs/tiny", chat_template="transcript")
    client = TestClient(create_app(Failing(tokenizer), settings))
    said = {"prompt": "The"} if path == "completions" else {"messages": [{"role": "user", "content": "The"}]}
    answer = client.post(f"/v1/{path}", json={"model": "tiny", "max_tokens": 5, "stream": True, **said})
    assert answer.status_code == 200
    *texts, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert len(texts) == 2
    assert json.loads(last)["error"]["code"] == "unavailable"
    whole = client.post(f"/v1/{path}", json={"model": "tiny", "max_tokens": 5, **said})
    assert (whole.status_code, whole.headers["Retry-After"]) == (503, "1")


SETTINGS: dict[str, Any] = {
    "seed": 7, "temperature": 0.3, "top_p": 0.8, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.4,
    "frequency_penalty": 0.6, "presence_penalty": -0.7, "logit_bias": {"4": 2.5}, "min_tokens": 2, "ignore_eos": True,
    "max_tokens": 3, "growtx": {"rule": "mixture", "weights": [0.25, 0.75], "depth": 2, "attribution": True},
}  # fmt: skip
EXPECTED = Sampling(
    seed=7, temperature=0.3, top_p=0.8, top_k=5, min_p=0.1, repetition_penalty=1.4, frequency_penalty=0.6,
    presence_penalty=-0.7, logit_bias=((4, 2.5),), min_tokens=2, ignore_eos=True, num_logprobs=2, rule="mixture",
    weights=(0.25, 0.75), attribution=True,
)  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_every_setting_of_a_completion_reaches_the_engine(
    client: TestClient, backend: Listener, tokenizer: Any, stream: bool
) -> None:
    body = {"model": "tiny", "prompt": "The", "logprobs": 2, "stream": stream, **SETTINGS}
    assert client.post("/v1/completions", json=body).status_code == 200
    (request,) = backend.asked
    assert request.sampling == EXPECTED
    assert (request.depth, request.max_tokens, request.num_hidden) == (2, 3, 1)
    assert request.token_ids == (tokenizer.eos_token_id, *tokenizer.encode("The", add_special_tokens=False))


def test_every_setting_of_a_chat_reaches_the_engine(client: TestClient, backend: Listener) -> None:
    chat = {"logprobs": True, "top_logprobs": 2, "messages": [{"role": "user", "content": "The"}]}
    answer = client.post("/v1/chat/completions", json={"model": "tiny", **chat, **SETTINGS})
    assert answer.status_code == 200, answer.text
    (request,) = backend.asked
    assert request.sampling == EXPECTED
    assert (request.depth, request.max_tokens, request.num_hidden) == (2, 3, 1)


def test_settings_that_are_not_given_change_nothing(client: TestClient, backend: Listener) -> None:
    client.post("/v1/completions", json={"model": "tiny", "prompt": "The"})
    (request,) = backend.asked
    assert request.sampling == Sampling(seed=request.sampling.seed)
    assert (request.depth, request.max_tokens) == (None, 16)


def test_texts_without_a_seed_have_one_each(client: TestClient, backend: Listener) -> None:
    for _ in range(2):
        client.post("/v1/completions", json={"model": "tiny", "prompt": ["The", "The"], "n": 2})
    seeds = [request.sampling.seed for request in backend.asked]
    assert len(set(seeds)) == len(seeds) == 8


def test_texts_with_a_seed_have_one_each_and_the_same_for_every_prompt(client: TestClient, backend: Listener) -> None:
    client.post("/v1/completions", json={"model": "tiny", "prompt": ["The", "quick"], "n": 3, "seed": 5})
    seeds = [request.sampling.seed for request in sorted(backend.asked, key=lambda asked: asked.token_ids)]
    assert len(set(seeds)) == 3
    assert sorted(seeds[:3]) == sorted(seeds[3:])
    assert 5 in seeds


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "expected"),
    [
        (CONTEXT - 4, None, 4),
        (CONTEXT - 4, 3, 3),
        (CONTEXT - 4, 4, 4),
        (CONTEXT - 4, 5, 4),
        (CONTEXT - 1, 1, 1),
        (CONTEXT, None, 0),
        (CONTEXT, 1, 400),
        (CONTEXT + 1, None, 400),
        (CONTEXT + 1, 1, 400),
    ],
)
def test_nothing_is_generated_beyond_the_context(
    client: TestClient, backend: Listener, num_prompt: int, max_tokens: int | None, expected: int
) -> None:
    body = {"model": "tiny", "prompt": [5] * num_prompt}
    answer = client.post("/v1/completions", json=body if max_tokens is None else {**body, "max_tokens": max_tokens})
    if expected == 400:
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert backend.asked == []
        return
    assert answer.json()["usage"]["completion_tokens"] == expected
    assert [request.max_tokens for request in backend.asked] == ([expected] if expected else [])


def test_after_an_echo_offsets_go_on_where_the_prompt_ends(client: TestClient, backend: Listener) -> None:
    body = {"model": "tiny", "prompt": "The quick", "echo": True, "logprobs": 0, "max_tokens": 3, "n": 2}
    answer = client.post("/v1/completions", json=body).json()
    for choice in answer["choices"]:
        assert choice["text"] == "The quickxxx"
        assert choice["logprobs"]["text_offset"][-3:] == [9, 10, 11]
        assert choice["logprobs"]["tokens"][-3:] == ["x"] * 3
    assert len(backend.scored) == 1, "once for all texts of the prompt"


@pytest.mark.parametrize(("min_tokens", "text"), [(0, ""), (3, ""), (4, ""), (5, "x"), (6, "xx")])
def test_a_stop_sequence_ends_a_text_unless_that_is_too_short(client: TestClient, min_tokens: int, text: str) -> None:
    """Also where the sequence began before: what was sent is not taken back, and the rest may be one again."""
    body = {"model": "tiny", "prompt": "The", "max_tokens": 8, "stop": "xxx", "min_tokens": min_tokens}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")


def test_prompts_times_texts_are_bounded(backend: Listener) -> None:
    limited = ServeSettings(model="runs/tiny", limits={"max_choices": 4})
    client = TestClient(create_app(backend, limited))
    for prompts, n, status in ((4, 1, 200), (2, 2, 200), (1, 4, 200), (5, 1, 400), (3, 2, 400), (1, 5, 400)):
        body = {"model": "tiny", "prompt": ["The"] * prompts, "n": n, "max_tokens": 1}
        assert client.post("/v1/completions", json=body).status_code == status


def test_usage_counts_each_prompt_once_and_no_hidden_token(client: TestClient, tokenizer: Any) -> None:
    body = {"model": "tiny", "prompt": ["The quick", "fox"], "n": 3, "max_tokens": 2}
    num_prompt = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in body["prompt"])
    usage = client.post("/v1/completions", json=body).json()["usage"]
    assert usage == {"prompt_tokens": num_prompt, "completion_tokens": 12, "total_tokens": num_prompt + 12}
