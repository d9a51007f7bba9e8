"""Requests that no honest client sends: all of them wrong (`garbage`), or changed at random (`mutant`)."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from typing import Any

from growtx.serving.protocol import CompletionRequest

Request = tuple[str, str, bytes, dict[str, str]]  # method, path, body, headers
JSON = {"content-type": "application/json"}
FIELDS = [*CompletionRequest.model_fields, "x"]
VALID: dict[str, Any] = {"model": "tiny", "prompt": "The", "max_tokens": 2}
BODY_LIMIT = 4096  # of the server that is asked

NOT_TEXT: list[Any] = [0, -1, 1.5, True, {}, {"a": 1}, None, 10**40]
NOT_A_NUMBER: list[Any] = ["", "1", "NaN", [], [1], {}, {"value": 1}, True, False]
NOT_A_SWITCH: list[Any] = [0, 1, "true", "", [], {}]
HUGE: list[Any] = [2**63, -(2**63) - 1, 2**64, -(2**70), 10**300, 10**4000, 1e308, -1e308]
NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "1_000", "+1", "01"]
WRONG: dict[str, list[Any]] = {
    "model": [*NOT_TEXT, [], "other", "tiny\x00", "../tiny", "/etc/passwd", "x" * 1025],
    "prompt": [
        0,
        -1,
        1.5,
        True,
        {},
        None,
        [],
        [[]],
        [None],
        ["a", 1],
        [1, "a"],
        [-1],
        [2**31],
        [10**30],
        [1.5],
        [[1], []],
    ],
    "max_tokens": [*NOT_A_NUMBER, *HUGE, -1, 0, 1.5],
    "temperature": [*NOT_A_NUMBER, *HUGE, -0.001, 2.001],
    "top_p": [*NOT_A_NUMBER, *HUGE, 0, -1, 1.001],
    "n": [*NOT_A_NUMBER, *HUGE, 0, -1, 1.5, 5, 129],
    "seed": [*NOT_A_NUMBER, *HUGE, 1.5],
    "stream": NOT_A_SWITCH,
    "echo": NOT_A_SWITCH,
    "stream_options": [0, "x", [], {"include_usage": 1}, {"include_usage": True}, {"x": True}],
    "stop": [0, True, {}, "", [""], ["a", 1], ["a"] * 5, "x" * 257, [None], [["a"]]],
    "logprobs": [*NOT_A_NUMBER, *HUGE, -1, 21, 1.5],
    "user": [0, True, [], {}, "x" * 1025],
    "best_of": [*NOT_A_NUMBER, *HUGE, 0, 2],
    "presence_penalty": [*NOT_A_NUMBER, *HUGE, 2.5],
    "frequency_penalty": [*NOT_A_NUMBER, *HUGE, -2.5],
    "logit_bias": [0, "x", [], {"50256": -100}, {"5": 101}, {"x": 1}, {"5": "1"}, {"-1": 1}, {"5": None}],
    "repetition_penalty": [*NOT_A_NUMBER, *HUGE, 0, -1, 11],
    "top_k": [*NOT_A_NUMBER, *HUGE, -2, 1.5],
    "min_p": [*NOT_A_NUMBER, *HUGE, -0.1, 1.1],
    "min_tokens": [*NOT_A_NUMBER, *HUGE, -1, 1.5],
    "ignore_eos": NOT_A_SWITCH,
    "add_special_tokens": NOT_A_SWITCH,
    "use_beam_search": [True, 1, "x"],
    "length_penalty": [2, "x", True],
    "suffix": ["x", 0, [], {}],
    "growtx": [
        *[0, "x", [], True, {"x": 1}, {"rule": 1}, {"rule": "none"}, {"rule": "__import__('os')"}, {"rule": "../mean"}],
        *[{"weights": weights} for weights in ([], [1], [0, 0], [1, 1, 1], ["1", "1"], [1e9, 1], [True, 1], "11", 1)],
        *[{"rule": "mixture", "weights": [1, -1]}, {"depth": 0}, {"depth": 7}, {"depth": "2"}, {"depth": 2.5}],
        *[{"depth": 10**30}, {"attribution": 1}, {"attribution": "yes"}, {"rule": "mean", "path": "/etc/passwd"}],
    ],
    "x": [0, "x", [], {}],
}


def garbage(generator: random.Random) -> Request:
    """A request that must be refused."""
    return generator.choice(KINDS)(generator)


def mutant(generator: random.Random) -> Request:
    """A right request of which some fields were replaced by anything; now and then it stays right."""
    body = dict(VALID)
    for _ in range(generator.randrange(1, 4)):
        body[generator.choice(FIELDS)] = _value(generator)
    return _completion(json.dumps(body).encode("utf-8", "surrogatepass"))


def _completion(body: bytes) -> Request:
    return "POST", "/v1/completions", body, JSON


def _noise(generator: random.Random) -> Request:
    return _completion(generator.randbytes(generator.randrange(400)))


def _nothing(generator: random.Random) -> Request:
    return _completion(
        generator.choice([b"", b" ", b"\n\n", b"null", b"{}", b"[]", b'""', b"0", b"\x00", b"\xef\xbb\xbf"])
    )


def _deep(generator: random.Random) -> Request:
    brackets = generator.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"model":[', b"]}]")])
    depth = generator.randrange(3, 900)
    nested = brackets[0] * depth + b"1" + brackets[1] * generator.choice([0, depth - 1, depth])
    field = generator.choice(["prompt", "stop", "growtx", "logit_bias", "x"])
    whole = f'{{"model": "tiny", "{field}": '.encode() + nested + b', "max_tokens": 2}'
    return _completion(generator.choice([nested, whole]))


def _cut(generator: random.Random) -> Request:
    text = json.dumps(VALID).encode()
    return _completion(text[: generator.randrange(len(text))])


def _trailing(generator: random.Random) -> Request:
    return _completion(json.dumps(VALID).encode() + generator.choice([b"}", b",", b"{}", b"x", b"\x00", b"//"]))


def _broken_utf8(generator: random.Random) -> Request:
    broken = generator.choice([b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"])
    text = json.dumps(VALID).encode()
    at = text.index(b"The") + generator.randrange(4)
    return _completion(text[:at] + broken + text[at:])


def _escapes(generator: random.Random) -> Request:
    """Halves of surrogate pairs, broken escapes and control characters in a string."""
    inside = generator.choice(["\\ud800", "\\udc00x", "\\u12", "\\x41", "\\", "\x01", "\n"])
    return _completion(('{"model": "tiny", "prompt": "a' + inside + '", "max_tokens": 2}').encode())


def _not_a_json_number(generator: random.Random) -> Request:
    field = generator.choice(["max_tokens", "temperature", "top_p", "n", "seed", "logprobs"])
    number = generator.choice([*NOT_FINITE, "9" * generator.randrange(25, 3000), "1e" + "9" * 200, "-" * 10 + "1"])
    return _completion(f'{{"model": "tiny", "prompt": "The", "{field}": {number}}}'.encode())


def _to_another_route(generator: random.Random) -> Request:
    """No JSON, or a body that is none of the other routes'."""
    _, _, body, headers = generator.choice([_noise, _nothing, _deep, _cut, _trailing, _escapes])(generator)
    return "POST", generator.choice(["/v1/chat/completions", "/tokenize", "/detokenize"]), body, headers


def _wrong_conversation(generator: random.Random) -> Request:
    contents: list[Any] = [1, True, {}, [1], [{"type": "image_url"}], [{"type": "text"}], "x" * 1500, ["a"]]
    messages: list[Any] = [{"role": generator.choice(["user", "system"]), "content": generator.choice(contents)}]
    messages = generator.choice([messages, *NOT_TEXT, [], [1], [{}], [{"role": "tool", "content": "x"}], "hello"])
    changes: dict[str, Any] = {"messages": messages}
    if generator.random() < 0.5:
        right = [{"role": "user", "content": "x"}]
        wrong: list[dict[str, Any]] = [
            {"tools": [{}]},
            {"logprobs": 2},
            {"top_logprobs": 2},
            {"max_tokens": 0},
            {"x": 1},
        ]
        changes = {"messages": right, **generator.choice(wrong)}
    return "POST", "/v1/chat/completions", json.dumps({"model": "tiny", "max_tokens": 2, **changes}).encode(), JSON


def _wrong_tokens(generator: random.Random) -> Request:
    """Questions to the tokenizer."""
    tokens = generator.choice([*NOT_TEXT[1:], [-1], [2**31], [10**30], [1.5], ["1"], [[1]], [10**6], [None]])
    texts: list[Any] = [*NOT_TEXT, ["a"], "x" * BODY_LIMIT]
    path, body = generator.choice(
        [("/detokenize", {"tokens": tokens}), ("/tokenize", {"prompt": generator.choice(texts)})]
    )
    return "POST", path, json.dumps(body).encode(), JSON


def _wrong_field(generator: random.Random) -> Request:
    field = generator.choice(list(WRONG))
    wrong = generator.choice(WRONG[field])
    body = {**VALID, **({"stream": False} if generator.random() < 0.5 else {}), field: wrong}
    return _completion(json.dumps(body).encode())


def _missing_field(generator: random.Random) -> Request:
    body = dict(VALID)
    del body[generator.choice(["model", "prompt"])]
    return _completion(json.dumps(body).encode())


def _too_much(generator: random.Random) -> Request:
    """A body, a prompt, a list or a context beyond what is allowed."""
    changes: list[dict[str, Any]] = [
        {"prompt": "x" * generator.randrange(BODY_LIMIT, 3 * BODY_LIMIT)},
        {"prompt": "x" * 1500},
        {"prompt": [5] * 300},
        {"prompt": [10**6]},
        {"prompt": ["a"] * 5},
        {"prompt": ["a"] * 3, "n": 2},
        {"max_tokens": -256},
    ]
    return _completion(json.dumps({**VALID, **generator.choice(changes)}).encode())


def _elsewhere(generator: random.Random) -> Request:
    """Other methods and paths."""
    name = "".join(generator.choices(string.ascii_letters + "./%-_", k=generator.randrange(1, 40)))
    paths = [
        f"/v1/{name}",
        f"/nothing/{name}",
        "/v1/models/other",
        "/v1/models/tiny/x",
        "/static/nothing",
        "/v1//models",
    ]
    paths += ["/static/../../etc/passwd", "/static/%2e%2e/%2e%2e/etc/passwd", "/%00", "/static/%00", "/etc/passwd"]
    wrong_methods = [
        ("GET", "/v1/completions"),
        ("PUT", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/healthz"),
    ]
    method, path = generator.choice([*wrong_methods, *(("GET", path) for path in paths)])
    return method, path, b"", {}


KINDS: list[Callable[[random.Random], Request]] = [
    *[_noise, _nothing, _deep, _cut, _trailing, _broken_utf8, _escapes, _not_a_json_number],
    *[_to_another_route, _wrong_conversation, _wrong_tokens],
    *[_missing_field, _too_much, _elsewhere, _wrong_field, _wrong_field, _wrong_field, _wrong_field],
]


def _value(generator: random.Random, depth: int = 0) -> Any:
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
        return [_value(generator, depth + 1) for _ in range(generator.randrange(4))]
    if choice == 2:
        return {generator.choice(FIELDS): _value(generator, depth + 1) for _ in range(generator.randrange(3))}
    return generator.choice(plain)
