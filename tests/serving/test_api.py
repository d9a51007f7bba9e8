"""The HTTP contract, over an engine in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from growtx.serving.api import create_app
from growtx.serving.engine import Engines
from growtx.serving.settings import ServeSettings, parse_settings
from tests.serving.conftest import make_ensemble


@pytest.fixture(scope="module")
def engines(tokenizer: Any) -> Iterator[Engines]:
    engines = Engines({None: make_ensemble(tokenizer)}, tokenizer, max_batch_size=8, max_queue=8, kv_cache_gib=0.05)
    yield engines
    engines.stop()


@pytest.fixture(scope="module")
def client(engines: Engines) -> Iterator[TestClient]:
    settings = parse_settings({"model": "runs/tiny", "limits.max_request_bytes": 20_000})
    with TestClient(create_app(engines, settings), raise_server_exceptions=True) as client:
        yield client


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/completions", json={"model": "tiny", "prompt": "The quick", "seed": 1, **body})


def test_the_same_seed_gives_the_same_text_streamed_or_not(client: TestClient) -> None:
    whole = ask(client, max_tokens=12).json()
    events = [
        line[6:] for line in ask(client, max_tokens=12, stream=True).text.split("\n") if line.startswith("data: ")
    ]
    assert events[-1] == "[DONE]"
    parts = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(part["text"] for part in parts) == whole["choices"][0]["text"]
    assert parts[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert ask(client, max_tokens=12, seed=2).json()["choices"][0]["text"] != whole["choices"][0]["text"]


def test_n_and_several_prompts_give_a_choice_each(client: TestClient) -> None:
    body = ask(client, prompt=["The quick", "brown fox"], n=2, max_tokens=8).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["choices"][0]["text"] == ask(client, max_tokens=8).json()["choices"][0]["text"]
    assert body["choices"][0]["text"] != body["choices"][1]["text"]


def test_usage_counts_what_the_client_sent_and_got(client: TestClient, tokenizer: Any) -> None:
    usage = ask(client, max_tokens=6, temperature=0).json()["usage"]
    assert usage["prompt_tokens"] == len(tokenizer.encode("The quick", add_special_tokens=False))
    assert usage["completion_tokens"] <= 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stop_sequence_ends_the_text_and_is_not_in_it(client: TestClient) -> None:
    text = ask(client, max_tokens=20).json()["choices"][0]["text"]
    stop = text[3:5]
    choice = ask(client, max_tokens=20, stop=[stop]).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.find(stop)], "stop")


def test_echo_with_logprobs_scores_the_prompt(client: TestClient) -> None:
    choice = ask(client, max_tokens=0, echo=True, logprobs=2).json()["choices"][0]
    assert choice["text"] == "The quick"
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == "The quick"
    assert all(value < 0 for value in logprobs["token_logprobs"])
    assert logprobs["text_offset"][0] == 0
    assert len(logprobs["top_logprobs"][0]) == 2


def test_logprobs_and_offsets_go_with_the_generated_text(client: TestClient) -> None:
    choice = ask(client, max_tokens=5, logprobs=0, echo=True).json()["choices"][0]
    for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        assert token.startswith("bytes:") or choice["text"].startswith(token, offset)


def test_rules_weights_and_attribution(client: TestClient) -> None:
    north = ask(client, max_tokens=6, growtx={"weights": [1, 0]}).json()["choices"][0]
    both = ask(client, max_tokens=6, growtx={"rule": "mixture", "attribution": True}).json()["choices"][0]
    assert north["text"] != both["text"]
    assert both["growtx"]["weights"] == [[0.5, 0.5]] * len(both["growtx"]["tokens"])
    assert all(sum(share) == pytest.approx(1) for share in both["growtx"]["shares"])


def test_the_model_list_says_what_can_be_asked(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert model["growtx"]["members"] == ["north", "south"]
    assert model["growtx"]["rules"][0] == "mean"


BAD_BODIES: list[tuple[dict[str, Any], int, str | None]] = [
    ({"model": "other"}, 404, "model"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"max_tokens": 0}, 400, None),
    ({"max_tokens": 10**9}, 400, "prompt"),
    ({"max_tokens": 10**30}, 400, "max_tokens"),
    ({"max_tokens": "8"}, 400, "max_tokens"),
    ({"temperature": 3}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"seed": 2**63}, 400, "seed"),
    ({"n": 17}, 400, "n"),
    ({"prompt": []}, 400, None),
    ({"prompt": [10**9]}, 400, "prompt"),
    ({"prompt": {"a": 1}}, 400, None),
    ({"prompt": "x" * 3000}, 400, "prompt"),
    ({"stop": ["a"] * 5}, 400, "stop"),
    ({"stop": ""}, 400, None),
    ({"logprobs": 21}, 400, "logprobs"),
    ({"best_of": 3}, 400, None),
    ({"presence_penalty": 0.5}, 400, None),
    ({"logit_bias": {"5": 1}}, 400, None),
    ({"frobnicate": 1}, 400, "frobnicate"),
    ({"stream_options": {}}, 400, None),
    ({"growtx": {"rule": "__import__"}}, 400, "growtx.rule"),
    ({"growtx": {"rule": "posterior"}}, 400, "growtx.rule"),
    ({"growtx": {"weights": [1]}}, 400, "growtx.weights"),
    ({"growtx": {"weights": [0, 0]}}, 400, "growtx.weights"),
    ({"growtx": {"rule": "mixture", "weights": [1, -1]}}, 400, "growtx.weights"),
    ({"growtx": {"depth": 7}}, 400, "growtx.depth"),
    ({"growtx": {"path": "/etc/passwd"}}, 400, "growtx.path"),
]


@pytest.mark.parametrize(("change", "status", "param"), BAD_BODIES, ids=str)
def test_bad_requests_name_the_field(
    client: TestClient, change: dict[str, Any], status: int, param: str | None
) -> None:
    response = ask(client, **change)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{bad", 400),
        (b"\xff\xfe{}", 400),
        (b'{"model": "\\ud800"}', 400),
        (b"[" * 10_000, 400),
        (b'{"a":' * 3_000, 400),
        (b'{"model":"tiny","prompt":"x","temperature":NaN}', 400),
        (b'{"model":"tiny","prompt":"x","temperature":1e999}', 400),
        (b"null", 400),
        (b"x" * 20_001, 413),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bodies_that_are_no_request(client: TestClient, body: bytes, status: int) -> None:
    response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_unknown_paths_and_methods_are_answered_in_shape(client: TestClient) -> None:
    assert client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/../../etc/passwd").status_code == 404


def test_every_reference_in_the_openapi_document_leads_somewhere(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    references = re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document))
    assert "components/schemas/GrowtxExtension" in references
    for reference in set(references):
        part = document
        for key in reference.split("/"):
            part = part[key]


def test_keys_are_needed_where_there_are_keys(engines: Engines, tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("first\nsecond\n")
    settings = ServeSettings(model="tiny", api_keys_file=str(file))
    with TestClient(create_app(engines, settings)) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).json()["error"]["code"]
        assert client.get("/v1/models", headers={"Authorization": "Bearer second"}).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_overload_is_429_with_retry_after(engines: Engines, client: TestClient) -> None:
    engine = engines._engines[None]
    engine.max_batch_size, engine.max_queue, before = 1, 0, (engine.max_batch_size, engine.max_queue)
    try:
        response = ask(client, n=4, max_tokens=4)
        streamed = ask(client, n=4, max_tokens=4, stream=True)
    finally:
        engine.max_batch_size, engine.max_queue = before
    for answer in (response, streamed):
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert engine.num_running == 0
