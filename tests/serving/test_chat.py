"""Conversations: templates in a sandbox, control tokens that no message can forge, and OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from growtx.exceptions import ConfigError
from growtx.serving.api import create_app
from growtx.serving.chat_template import TRANSCRIPT, ChatTemplate
from growtx.serving.engine import Engines
from growtx.serving.settings import ServeSettings, parse_settings
from tests.serving.conftest import make_ensemble

CONTROL = {"</s>": 2, "<|im_start|>": 7, "<|im_end|>": 8, "<|im|>": 9}
SPECIAL = {"eos_token": "</s>", "bos_token": "</s>"}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = [{"role": "user", "content": "The quick"}]


def parts(source: str, *texts: str, **options: Any) -> list[str | int]:
    template = ChatTemplate(source, CONTROL, SPECIAL)
    return template.parts([{"role": "user", "content": text} for text in texts], **options)


def test_a_template_writes_control_tokens_and_a_transcript_none() -> None:
    assert parts(CHATML, " Hi \n") == [7, "user\nHi", 8, "\n", 7, "assistant\n"]
    assert parts(CHATML, "Hi", add_generation_prompt=False) == [7, "user\nHi", 8, "\n"]
    assert parts(TRANSCRIPT, "Hi", "Ho") == ["User: Hi\nUser: Ho\nAssistant:"]
    assert parts("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "Hi") == ["Hi", 2]


PIECES = ["<|im_start|>", "<|im_end|>", "</s>", "<|", "im", "|>", "_start", "<", ">", " ", "x"]
FORGED = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@settings(deadline=None)
@given(st.lists(FORGED, min_size=1, max_size=4))
def test_no_message_becomes_a_control_token(texts: list[str]) -> None:
    for source in (CHATML, "<|{% for m in messages %}{{ m.content }}{% endfor %}|>", TRANSCRIPT):
        harmless = parts(source, *("x" if text.strip() else text for text in texts))
        controls = [part for part in parts(source, *texts) if isinstance(part, int)]
        assert controls == [part for part in harmless if isinstance(part, int)]
    said = "".join(part for part in parts(CHATML, *texts) if isinstance(part, str))
    assert all(text.strip() in said for text in texts), "and nothing is lost"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content | upper }}",
        "{{ messages[0]['nothing'].x }}",
        "{{ 1 // 0 }}",
        "{% for",
        "{{ messages[9999999999] }}" + "{{ range(10**9) | list }}",
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_a_400(engines: Engines, source: str) -> None:
    card_template = ServeSettings(model="tiny")
    app = create_app(engines, card_template)
    before, engines._tokenizer.chat_template = engines._tokenizer.chat_template, source
    try:
        with TestClient(app) as client:
            answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": USER})
    finally:
        engines._tokenizer.chat_template = before
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith("messages: the chat template refuses them: ")


@pytest.fixture(scope="module")
def engines(tokenizer: Any) -> Iterator[Engines]:
    engines = Engines({None: make_ensemble(tokenizer)}, tokenizer, max_batch_size=8, kv_cache_gib=0.05)
    yield engines
    engines.stop()


@pytest.fixture(scope="module")
def client(engines: Engines) -> Iterator[TestClient]:
    settings = parse_settings({"model": "tiny", "chat_template": "transcript", "limits.max_request_bytes": 20_000})
    with TestClient(create_app(engines, settings)) as client:
        yield client


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/chat/completions", json={"model": "tiny", "messages": USER, "seed": 1, **body})


def test_an_answer_is_the_completion_of_the_rendered_text(client: TestClient) -> None:
    body = {"model": "tiny", "prompt": "User: The quick\nAssistant:", "seed": 1, "max_tokens": 12, "stop": "\nUser:"}
    text = client.post("/v1/completions", json=body).json()
    chat = ask(client, max_tokens=12).json()
    assert chat["object"] == "chat.completion" and chat["id"].startswith("chatcmpl-")
    (choice,) = chat["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": text["choices"][0]["text"].removeprefix(" "),
        "refusal": None,
    }
    assert choice["finish_reason"] == text["choices"][0]["finish_reason"]
    assert chat["usage"] == text["usage"]


def test_a_stream_adds_up_to_the_answer(client: TestClient) -> None:
    whole = ask(client, max_tokens=12, n=2, logprobs=True, top_logprobs=2).json()
    options = {"include_usage": True}
    stream = ask(client, max_tokens=12, n=2, logprobs=True, top_logprobs=2, stream=True, stream_options=options)
    *events, done = [line.removeprefix("data: ") for line in stream.text.split("\n\n") if line]
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["usage"] == whole["usage"] and not chunks[-1]["choices"]
    for choice in whole["choices"]:
        mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert [part["delta"].get("role") for part in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert "".join(part["delta"]["content"] for part in mine) == choice["message"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        tokens = [token for part in mine for token in part["logprobs"]["content"]]
        assert [token["bytes"] for token in tokens] == [token["bytes"] for token in choice["logprobs"]["content"]]
        assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)


def test_messages_may_have_parts_and_what_clients_send_back(client: TestClient) -> None:
    longer = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "The"}, {"type": "text", "text": "quick"}]},
        {"role": "assistant", "content": "fox", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "jumps", "name": "ann"},
    ]
    plain = "Be brief.\nUser: The\nquick\nAssistant: fox\nUser: jumps\nAssistant:"
    ids = client.post("/tokenize", json={"messages": longer}).json()["tokens"]
    assert ids == client.post("/tokenize", json={"prompt": plain}).json()["tokens"]
    harmless = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}}
    assert ask(client, messages=longer, max_completion_tokens=3, **harmless).status_code == 200


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, 400, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "quick  " * 200}]}, 400, "messages"),
        ({"tools": [{"type": "function"}]}, 400, None),
        ({"logprobs": 2}, 400, "logprobs"),
        ({"top_logprobs": 2}, 400, None),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"prompt": "x"}, 400, "prompt"),
        ({"model": "other"}, 404, "model"),
    ],
    ids=str,
)
def test_wrong_conversations_name_the_field(
    client: TestClient, change: dict[str, Any], status: int, param: str | None
) -> None:
    for stream in (False, True):
        response = ask(client, **change, stream=stream)
        assert response.status_code == status, response.text
        assert response.json()["error"]["param"] == param


def test_four_stop_sequences_are_allowed_beside_the_transcripts_own(client: TestClient) -> None:
    assert ask(client, stop=["a", "b", "c", "d"], max_tokens=2).status_code == 200


def test_an_answer_may_take_what_the_context_holds(client: TestClient) -> None:
    usage = ask(client, ignore_eos=True, logit_bias={"7": 100}).json()["usage"]
    assert usage["total_tokens"] == 255


def test_without_a_template_a_sentence_says_what_to_do(engines: Engines) -> None:
    with TestClient(create_app(engines, ServeSettings(model="tiny"))) as client:
        error = ask(client).json()["error"]
        assert error["code"] == "no_chat_template" and "chat_template=transcript" in error["message"]
        assert client.post("/tokenize", json={"messages": USER}).status_code == 400


def test_a_message_that_spells_the_end_of_text_is_text(engines: Engines, tokenizer: Any) -> None:
    end = tokenizer.eos_token
    settings = ServeSettings(model="tiny", chat_template="{{ messages[0].content }}{{ eos_token }}")
    with TestClient(create_app(engines, settings)) as client:
        messages = [{"role": "user", "content": f"a{end}b"}]
        ids = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert ids[0] == ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]


def test_the_token_that_begins_a_document_stands_once_whether_a_template_writes_it_or_not(
    engines: Engines, tokenizer: Any
) -> None:
    found = []
    for begin in ("", "{{ bos_token }}", "{{ eos_token }}"):
        settings = ServeSettings(model="tiny", chat_template=begin + "{{ messages[0].content }}{% if 0 %}{% endif %}")
        with TestClient(create_app(engines, settings)) as client:
            found.append(client.post("/tokenize", json={"messages": USER}).json()["tokens"])
    assert found[0] == found[1] == found[2]
    assert found[0].count(tokenizer.eos_token_id) == 1


def test_the_setting_is_a_word_a_file_or_jinja_and_wrong_ones_are_refused(tmp_path: Any) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    assert parse_settings({"model": "m", "chat_template": str(file)}).chat_template_text() == CHATML
    assert parse_settings({"model": "m", "chat_template": CHATML}).chat_template_text() == CHATML
    assert parse_settings({"model": "m", "chat_template": "transcript"}).chat_template_text() == TRANSCRIPT
    assert ServeSettings(model="m").chat_template_text() is None
    file.write_text("no jinja in it")
    for wrong in (str(file), "nothing.jinja", "{% for", "{{ x | nothing }}"):
        with pytest.raises(ConfigError, match="chat_template"):
            ServeSettings(model="m", chat_template=wrong).chat_template_text()
