"""The endpoint as other people's programs see it: OpenAI's client, schemathesis, a fuzzer."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.api import create_app
from serve.engines import Engines
from serve.protocol import CompletionRequest
from serve.settings import ServeSettings, parse_settings
from tests.serve.conftest import make_ensemble
from tests.serve.local_server import serving

NUM_GARBAGE = 1500


@pytest.fixture(scope="module")
def engines(tokenizer: Any) -> Iterator[Engines]:
    engines = Engines({None: make_ensemble(tokenizer)}, tokenizer, kv_cache_gib=0.05)
    yield engines
    engines.stop()


@pytest.fixture(scope="module")
def app(engines: Engines) -> FastAPI:
    settings = {"model": "tiny", "limits.max_request_bytes": 4096, "limits.max_choices": 4}
    return create_app(engines, parse_settings(settings))


@pytest.fixture(scope="module")
def openai_client(engines: Engines) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with serving(engines, ServeSettings(model="tiny")) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_openai_client_streamed_and_whole(openai_client: Any) -> None:
    request = {"model": "tiny", "prompt": "The quick", "max_tokens": 10, "seed": 5, "temperature": 0.9, "top_p": 0.95}
    whole = openai_client.completions.create(**request)
    parts = list(openai_client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [model.id for model in openai_client.models.list()] == ["tiny"]


def test_openai_client_choices_stop_logprobs_and_echo(openai_client: Any) -> None:
    answer = openai_client.completions.create(
        model="tiny", prompt="The quick", max_tokens=8, n=2, seed=1, logprobs=2, echo=True, stop=["q.", "zz"]
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.text.startswith("The quick")
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset)
        assert all(len(top) in (1, 2) for top in choice.logprobs.top_logprobs)


def test_openai_client_extension_and_errors(openai_client: Any) -> None:
    import openai

    extra = {"growtx": {"rule": "mixture", "weights": [0.9, 0.1], "attribution": True}}
    answer = openai_client.completions.create(model="tiny", prompt="The", max_tokens=4, extra_body=extra)
    assert answer.choices[0].model_extra["growtx"]["weights"][0] == pytest.approx([0.9, 0.1])
    with pytest.raises(openai.NotFoundError, match="The model is tiny"):
        openai_client.completions.create(model="gpt-5", prompt="The")
    with pytest.raises(openai.BadRequestError, match="context has 256 tokens"):
        openai_client.completions.create(model="tiny", prompt="The", max_tokens=300)


def test_schemathesis_finds_nothing(app: FastAPI) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as openapi

    wanted = (
        checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_schema_conformance,
    )
    for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():

        @given(case=found.ok().as_strategy())
        @settings(max_examples=40, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def conforms(case: Any) -> None:
            case.call_and_validate(checks=wanted)

        conforms()


def test_garbage_is_never_a_server_error(app: FastAPI) -> None:
    generator = random.Random(0)
    with TestClient(app, raise_server_exceptions=True) as client:
        for _ in range(NUM_GARBAGE):
            body = garbage(generator)
            response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
            assert response.status_code in (200, 400, 404, 413), (body[:200], response.text[:200])
            if response.status_code != 200:
                assert response.json()["error"]["message"]


def garbage(generator: random.Random) -> bytes:
    """A body that is wrong in one of many ways, and now and then right."""
    kind = generator.randrange(6)
    if kind == 0:
        return generator.randbytes(generator.randrange(300))
    if kind == 1:
        return generator.choice([b"[", b'{"a":', b'["', b"[[{"]) * generator.randrange(1, 3000)
    valid: dict[str, Any] = {"model": "tiny", "prompt": "The", "max_tokens": 2}
    if kind == 2:
        text = json.dumps(valid)
        cut = generator.randrange(len(text))
        return (text[:cut] + generator.choice(string.printable) + text[cut + 1 :]).encode()
    for _ in range(generator.randrange(1, 4)):
        valid[generator.choice(FIELDS)] = value(generator)
    return json.dumps(valid).encode("utf-8", "surrogatepass")


FIELDS = [*CompletionRequest.model_fields, "x"]


def value(generator: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, and some that it should not."""
    plain: list[Any] = [
        None,
        True,
        0,
        1,
        -1,
        2**63,
        -(2**70),
        10**300,
        0.5,
        1e308,
        "",
        "x",
        "\ud800",
        "\x00",
        "🦊" * 50,
    ]
    plain += [float("nan"), float("inf"), "tiny", {"rule": "mean"}, {"weights": [1, 1]}, {"depth": 1}, [[1, 2], [3]]]
    choice = generator.randrange(3 if depth < 3 else 1)
    if choice == 1:
        return [value(generator, depth + 1) for _ in range(generator.randrange(4))]
    if choice == 2:
        return {generator.choice(FIELDS): value(generator, depth + 1) for _ in range(generator.randrange(3))}
    return generator.choice(plain)
