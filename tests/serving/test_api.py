"""The HTTP contract, over an engine in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from growtx.exceptions import ConfigError
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
    ({"max_tokens": 10**30}, 400, "max_tokens"),
    ({"max_tokens": "8"}, 400, "max_tokens"),
    ({"temperature": 3}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"seed": 2**63}, 400, "seed"),
    ({"n": 129}, 400, "n"),
    ({"prompt": ["a"] * 65, "n": 2}, 400, "n"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [10**9]}, 400, "prompt"),
    ({"prompt": {"a": 1}}, 400, "prompt"),
    ({"prompt": ["a", 1]}, 400, "prompt"),
    ({"prompt": [[1], []]}, 400, "prompt"),
    ({"prompt": "x" * 3000}, 400, "prompt"),
    ({"stop": ["a"] * 5}, 400, "stop"),
    ({"stop": ""}, 400, "stop"),
    ({"stop": ["a", 1]}, 400, "stop"),
    ({"logprobs": 21}, 400, "logprobs"),
    ({"best_of": 3}, 400, None),
    ({"presence_penalty": 2.5}, 400, "presence_penalty"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty"),
    ({"logit_bias": {"5": 101}}, 400, "logit_bias.5"),
    ({"logit_bias": {"five": 1}}, 400, None),
    ({"logit_bias": {"999999": 1}}, 400, "logit_bias"),
    ({"min_p": 2}, 400, "min_p"),
    ({"top_k": -2}, 400, "top_k"),
    ({"use_beam_search": True}, 400, None),
    ({"suffix": "after"}, 400, None),
    ({"frobnicate": 1}, 400, "frobnicate"),
    ({"stream_options": {"include_usage": True}}, 400, None),
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


OPEN = {"/", "/static", "/health", "/healthz"}  # what needs no key: a new route does, unless it is named here
ROUTES = [
    *[("GET", path) for path in ("/v1/models", "/v1/models/{name:path}", "/tokenizer_info", "/metrics", "/docs")],
    *[("GET", path) for path in ("/openapi.json", "/", "/static", "/health", "/healthz")],
    *[("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")],
]


def routes_of(app: Any) -> set[tuple[str, str]]:
    return {(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or {"GET"}}


@pytest.fixture(scope="module")
def locked(engines: Engines, tmp_path_factory: Any) -> Iterator[TestClient]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("\ufefffirst\r\n\n   \nsecond\n\n", encoding="utf-8")
    settings = ServeSettings(model="tiny", api_keys_file=str(file), allowed_origins=["https://example.org"])
    with TestClient(create_app(engines, settings)) as client:
        yield client


def test_the_routes_are_those_that_the_test_below_asks(locked: TestClient) -> None:
    assert routes_of(locked.app) == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=str)
@pytest.mark.parametrize(
    "sent", [None, "Bearer wrong", "Bearer firs", "Bearer firstx", "Bearer ", "Bearer", "Basic first"]
)
def test_every_route_asks_for_the_key(locked: TestClient, method: str, path: str, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    url = "/static/page.js" if path == "/static" else path.replace("{name:path}", "tiny")
    answer = locked.request(method, url, headers=headers)
    if path in OPEN:
        assert answer.status_code == 200
        return
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    for key in ("first", "second"):
        assert locked.request(method, url, headers={"Authorization": f"Bearer {key}"}).status_code in (200, 400)


def test_metrics_are_public_if_somebody_says_so(engines: Engines, tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("first")
    settings = ServeSettings(model="tiny", api_keys_file=str(file), public_metrics=True)
    with TestClient(create_app(engines, settings)) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("content", ["", "\n", " \n\t\r\n", "\ufeff\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Any, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="has no key"):
        ServeSettings(model="tiny", api_keys_file=str(file)).api_keys()


def test_a_model_has_a_page_of_its_own(client: TestClient) -> None:
    (listed,) = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/tiny").json() == listed
    assert listed["max_model_len"] == 255
    missing = client.get("/v1/models/other/one")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_head_is_get_without_a_body_and_slashes_at_the_end_are_no_redirect(client: TestClient) -> None:
    for path in ("/", "/v1/models", "/v1/models/tiny", "/health", "/healthz", "/metrics", "/openapi.json", "/docs"):
        for url in {path, f"{path.rstrip('/')}/"}:
            got = client.get(url, follow_redirects=False)
            head = client.head(url, follow_redirects=False)
            assert (got.status_code, head.status_code, head.content) == (200, 200, b""), url
            assert head.headers["content-type"] == got.headers["content-type"]
    assert client.head("/v1/nothing").status_code == 404
    body = {"model": "tiny", "prompt": "The", "max_tokens": 1}
    assert client.post("/v1/completions/", json=body, follow_redirects=False).status_code == 200
    assert client.get("/v1//models").status_code == 404


def test_pages_of_the_allowed_origins_may_call(locked: TestClient, client: TestClient) -> None:
    asks = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"
    preflight = locked.options("/v1/completions", headers=asks)
    assert preflight.status_code == 200, "without a key: browsers send none"
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://example.org"
    refused = locked.get("/v1/models", headers={"Origin": "https://example.org"})
    assert refused.status_code == 401 and "Access-Control-Allow-Origin" in refused.headers
    assert locked.options("/v1/completions", headers={**asks, "Origin": "https://evil.org"}).status_code == 400
    assert "Access-Control-Allow-Origin" not in client.get("/v1/models", headers=asks).headers, "off by default"
    for wrong in ("example.org", "https://example.org/", "https://example.org/page"):
        with pytest.raises(ConfigError, match="allowed_origins"):
            parse_settings({"model": "tiny", "allowed_origins": [wrong]})


def test_tokenizing_goes_there_and_back(client: TestClient, tokenizer: Any) -> None:
    answer = client.post("/tokenize", json={"model": "tiny", "prompt": "The quick", "return_token_strs": True}).json()
    plain = tokenizer.encode("The quick", add_special_tokens=False)
    assert answer["tokens"] == [tokenizer.bos_token_id, *plain]
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) and answer["max_model_len"] == 255
    bare = client.post("/tokenize", json={"prompt": "The quick", "add_special_tokens": False}).json()
    assert bare["tokens"] == plain and bare["token_strs"] is None
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "The quick"}
    body = {"model": "tiny", "seed": 1, "max_tokens": 8}
    by_ids = client.post("/v1/completions", json={**body, "prompt": answer["tokens"]}).json()["choices"]
    assert by_ids == client.post("/v1/completions", json={**body, "prompt": "The quick"}).json()["choices"]
    assert client.post("/tokenize", json={"prompt": "x" * 15_000}).json()["count"] > 255, "longer than the context"


def test_a_client_learns_the_special_tokens(client: TestClient, tokenizer: Any) -> None:
    about = client.get("/tokenizer_info").json()
    assert about["eos_token"] == tokenizer.eos_token and "chat_template" not in about
    asked = client.post("/tokenize", json={"prompt": about["eos_token"], "add_special_tokens": False}).json()
    assert asked["tokens"] == [tokenizer.eos_token_id], "how lm-eval asks"
    inside = client.post("/tokenize", json={"prompt": f"a{about['eos_token']}"}).json()["tokens"]
    assert tokenizer.eos_token_id not in inside[1:], "in a text it is text"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": ["a"]}, 400),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404),
        ("/detokenize", {"tokens": [10**9]}, 400),
        ("/detokenize", {"tokens": [360]}, 400),
        ("/detokenize", {"tokens": ["a"]}, 400),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404),
    ],
    ids=str,
)
def test_wrong_questions_to_the_tokenizer(client: TestClient, path: str, body: dict[str, Any], status: int) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_browsers_are_told_what_pages_may_load(client: TestClient) -> None:
    page, docs = client.get("/"), client.get("/docs")
    assert "default-src 'none'; script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "unsafe-inline" not in page.headers["Content-Security-Policy"]
    scripts = docs.headers["Content-Security-Policy"].split("script-src ")[1].split(";")[0]
    assert "'sha256-" in scripts and "unsafe-inline" not in scripts
    assert client.get("/v1/models").headers["X-Content-Type-Options"] == "nosniff"
    assert (
        "<script>" not in page.text and "style=" not in page.text and " on" not in re.sub(r">[^<]*<", "><", page.text)
    )


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


# What clients send by default, as they were seen to send it.
CLIENT_DEFAULTS: dict[str, dict[str, Any]] = {
    "openai": {"stream": False},
    "langchain": {"best_of": 1, "frequency_penalty": 0, "max_tokens": 256, "n": 1, "presence_penalty": 0, "top_p": 1},
    "litellm": {"logit_bias": {}, "user": "someone", "metadata": {"a": 1}},
    "vllm bench": {
        "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 3, "logprobs": None, "stream": True,
        "stream_options": {"include_usage": True},
    },
    "guidellm": {
        "stream": True, "max_tokens": 4, "ignore_eos": True, "stop": None,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "sglang bench": {"temperature": 0.0, "best_of": 1, "max_tokens": 4, "stream": True, "ignore_eos": True},
    "ecosystem": {
        "suffix": "", "growtx": None, "min_tokens": 0, "skip_special_tokens": True, "use_beam_search": False,
        "stop_token_ids": [], "response_format": {"type": "text"}, "unknown_but_null": None, "stream_options": {},
        "include_obfuscation": None, "top_k": -1, "min_p": 0.0, "max_completion_tokens": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CLIENT_DEFAULTS)
def test_what_clients_send_by_default_is_answered(client: TestClient, name: str) -> None:
    response = ask(client, **CLIENT_DEFAULTS[name])
    assert response.status_code == 200, response.text


def test_what_does_not_fit_is_cut_and_what_was_not_asked_for_never_errs(client: TestClient) -> None:
    answer = ask(client, max_tokens=10**9, seed=3, ignore_eos=True).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 255, "the context has 256, one of which is the hidden start token"
    full = [5] * 256
    assert client.post("/v1/completions", json={"model": "tiny", "prompt": full}).json()["choices"][0]["text"] == ""
    assert client.post("/v1/completions", json={"model": "tiny", "prompt": full, "max_tokens": 1}).status_code == 400
    refused = ask(client, prompt="x " * 300).json()["error"]
    assert refused["param"] == "prompt" and "has 255 tokens" in refused["message"]


def test_a_request_of_more_texts_than_the_engine_holds_is_served(client: TestClient) -> None:
    answer = ask(client, prompt=["The", "quick"] * 20, n=2, max_tokens=2).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(80))


def test_choices_of_a_seed_differ_and_a_prompt_in_a_list_has_the_texts_it_has_alone(client: TestClient) -> None:
    texts = {
        choice["text"] for seed in range(8) for choice in ask(client, seed=seed, n=4, max_tokens=12).json()["choices"]
    }
    assert len(texts) == 32
    alone = [choice["text"] for choice in ask(client, prompt="lazy dog", n=3, seed=5).json()["choices"]]
    listed = [choice["text"] for choice in ask(client, prompt=["The", "lazy dog"], n=3, seed=5).json()["choices"]]
    assert listed[3:] == alone


@pytest.mark.parametrize("temperature", [0, 1e-45, 1e-6])
def test_tiny_temperatures_are_greedy(client: TestClient, temperature: float) -> None:
    greedy = ask(client, temperature=0, max_tokens=12).json()["choices"][0]["text"]
    assert ask(client, temperature=temperature, max_tokens=12).json()["choices"][0]["text"] == greedy


def test_biases_and_penalties_do_what_they_say(client: TestClient) -> None:
    def tokens(**body: Any) -> list[str]:
        return list(
            ask(client, logprobs=0, max_tokens=20, temperature=0, **body).json()["choices"][0]["logprobs"]["tokens"]
        )

    only = tokens(logit_bias={"7": 100})
    assert len(set(only)) == 1
    varied = tokens(logit_bias={"7": 100}, frequency_penalty=2, presence_penalty=2, repetition_penalty=10)
    assert len(set(varied)) > 1
    never = tokens(logit_bias={"7": -100})
    assert only[0] not in never


def test_an_end_of_text_token_is_deferred_or_ignored(client: TestClient) -> None:
    end = client.get("/v1/models").json()["data"][0]["growtx"]["vocab_size"] and {"2": 100.0}
    assert ask(client, logit_bias=end, max_tokens=9).json()["usage"]["completion_tokens"] == 1
    assert ask(client, logit_bias=end, max_tokens=9, min_tokens=4).json()["usage"]["completion_tokens"] == 5
    ignored = ask(client, logit_bias=end, max_tokens=9, ignore_eos=True).json()
    assert ignored["usage"]["completion_tokens"] == 9 and ignored["choices"][0]["finish_reason"] == "length"


def test_usage_stands_in_every_event_if_asked(client: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = ask(client, stream=True, max_tokens=5, ignore_eos=True, stream_options=options)
    lines = [line for line in response.text.split("\n\n") if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(event["usage"] for event in events) and events[-1]["usage"]["completion_tokens"] == 5
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)


def test_a_byte_order_mark_before_a_body_is_no_error(client: TestClient) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"model": "tiny", "prompt": "The"}).encode()
    assert client.post("/v1/completions", content=body).status_code == 200


def test_scoring_a_prompt_is_done_once_for_all_its_texts(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from growtx.serving.decoder import Decoder

    calls, score = [], Decoder.score
    monkeypatch.setattr(Decoder, "score", lambda *arguments: calls.append(1) or score(*arguments))
    answer = ask(client, prompt="The quick fox", n=8, echo=True, logprobs=1, max_tokens=0).json()
    assert len(answer["choices"]) == 8 and len(calls) == 1


def test_names_of_top_tokens_never_collide(client: TestClient) -> None:
    choice = ask(client, prompt="лиса 🦊 x", echo=True, logprobs=20, max_tokens=8, temperature=1.5, seed=2).json()[
        "choices"
    ][0]
    logprobs = choice["logprobs"]
    assert all(top is None or len(top) >= 20 for top in logprobs["top_logprobs"])
    offsets = logprobs["text_offset"]
    assert offsets == sorted(offsets) and offsets[-1] <= len(choice["text"])
