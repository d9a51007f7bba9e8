"""The endpoint as OpenAI's client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from growtx.serving.engine import Engines
from growtx.serving.settings import ServeSettings
from tests.serving.conftest import make_ensemble
from tests.serving.local_server import serving


@pytest.fixture(scope="module")
def engines(tokenizer: Any) -> Iterator[Engines]:
    engines = Engines({None: make_ensemble(tokenizer)}, tokenizer, kv_cache_gib=0.05)
    yield engines
    engines.stop()


@pytest.fixture(scope="module")
def openai_client(engines: Engines) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with serving(engines, ServeSettings(model="tiny", chat_template="transcript")) as url:
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
    assert openai_client.completions.create(model="tiny", prompt="The", max_tokens=300).usage.total_tokens <= 255
    with pytest.raises(openai.BadRequestError, match="context has 255 tokens"):
        openai_client.completions.create(model="tiny", prompt="The quick " * 200, max_tokens=3)


def test_openai_client_chats_and_asks_for_a_model(openai_client: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The quick"}]
    request = {"model": "tiny", "messages": messages, "max_completion_tokens": 10, "seed": 5, "logprobs": True}
    whole = openai_client.chat.completions.create(**request, top_logprobs=3)
    parts = list(openai_client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content for part in parts if part.choices) == whole.choices[0].message.content
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)
    messages += [whole.choices[0].message.model_dump(), {"role": "user", "content": "brown fox"}]
    assert openai_client.chat.completions.create(**{**request, "messages": messages}).choices
    assert openai_client.models.retrieve("tiny").max_model_len == 255


def test_lm_eval_needs_no_tokenizer_of_its_own(openai_client: Any, tokenizer: Any) -> None:
    utilities = pytest.importorskip("lm_eval.utils")
    remote = utilities.RemoteTokenizer(base_url=f"{openai_client.base_url}completions")
    assert remote.eos_token_id == tokenizer.eos_token_id == remote.bos_token_id
    ids = remote.encode("The quick")
    assert ids == tokenizer.encode("The quick", add_special_tokens=False) and remote.decode(ids) == "The quick"
    history = [{"role": "user", "content": "The quick"}]
    assert remote.apply_chat_template(history) == "User: The quick\nAssistant:"
