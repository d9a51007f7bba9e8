"""Whatever a client sends is the client's fault: schemathesis and a fuzzer find no server error.

GROWTX_GARBAGE=10000 pytest -s tests/serving/test_garbage.py      # more of it, and the counts by status
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from growtx.serving.api import create_app
from growtx.serving.engine import Engines
from growtx.serving.settings import parse_settings
from tests.serving.conftest import make_ensemble
from tests.serving.garbage import BODY_LIMIT, Request, garbage, mutant

NUM_GARBAGE = int(os.environ.get("GROWTX_GARBAGE", "400"))
NUM_EXAMPLES = max(20, NUM_GARBAGE // 20)  # of schemathesis, for every operation


@pytest.fixture(scope="module")
def app(tokenizer: Any) -> Iterator[FastAPI]:
    engines = Engines({None: make_ensemble(tokenizer)}, tokenizer, kv_cache_gib=0.05)
    settings = {"model": "tiny", "limits.max_request_bytes": BODY_LIMIT, "limits.max_choices": 4}
    settings["chat_template"] = "transcript"
    yield create_app(engines, parse_settings(settings))
    engines.stop()


def send(app: FastAPI, make: Callable[[random.Random], Request], number: int, allowed: range) -> Counter[int]:
    """Answers by status; an exception inside the application is one here."""
    generator, statuses = random.Random(0), Counter[int]()
    with TestClient(app, raise_server_exceptions=True) as client:
        for _ in range(number):
            method, path, body, headers = make(generator)
            response = client.request(method, path, content=body, headers=headers)
            statuses[response.status_code] += 1
            assert response.status_code in allowed, (method, path, body[:300], response.text[:200])
            if response.status_code >= 400:
                assert response.json()["error"]["message"], (method, path)
    return statuses


def test_garbage_is_refused(app: FastAPI) -> None:
    statuses = send(app, garbage, NUM_GARBAGE, range(400, 500))
    print(f"garbage: {NUM_GARBAGE} requests, answers by status {dict(sorted(statuses.items()))}")
    assert set(statuses) >= {400, 404, 405, 413}


def test_random_changes_are_answered_or_refused(app: FastAPI) -> None:
    statuses = send(app, mutant, NUM_GARBAGE // 2, range(200, 500))
    print(f"mutants: {NUM_GARBAGE // 2} requests, answers by status {dict(sorted(statuses.items()))}")
    assert set(statuses) >= {200, 400}


def test_schemathesis_finds_nothing(app: FastAPI) -> None:
    """Cases that fit the OpenAPI document and cases that do not, of every operation."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi import checks as openapi

    wanted = (
        checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_headers_conformance,
        openapi.response_schema_conformance,
    )
    statuses = Counter[int]()
    for operation in (
        found.ok() for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()
    ):
        for mode in GenerationMode if operation.body else [GenerationMode.POSITIVE]:  # without a body none is wrong

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=NUM_EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def conforms(case: Any) -> None:
                response = case.call_and_validate(checks=wanted)
                statuses[response.status_code] += 1

            conforms()
    print(f"schemathesis: {statuses.total()} requests, answers by status {dict(sorted(statuses.items()))}")
    assert {200, 400} <= set(statuses)
