"""The built-in page in headless Chromium."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from growtx.serving.engine import Engines
from growtx.serving.requests import Generation, Token
from growtx.serving.settings import ServeSettings
from tests.serving.browser import CHROMIUM, Page, open_page
from tests.serving.conftest import make_ensemble, make_model
from tests.serving.local_server import serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

SLOW_SECONDS = 0.05  # a token: 240 of them take 12 seconds, long enough for any machine to stop them
IS_IDLE = "!document.getElementById('go').disabled"
NUM_TOKENS = "document.querySelectorAll('#text .token').length"


class Slowed(Engines):
    """As slow as a large model where a test says so."""

    seconds_per_token = 0.0
    num_together = 1  # tokens that arrive in one event

    async def generate(self, request: Generation) -> AsyncGenerator[list[Token], None]:  # type: ignore[override]
        stream, held = super().generate(request), list[Token]()
        try:
            async for tokens in stream:
                held += tokens
                if len(held) >= self.num_together or held[-1].finish_reason:
                    yield held
                    held = []
                await asyncio.sleep(self.seconds_per_token)
        finally:
            await stream.aclose()


@pytest.fixture(scope="module")
def engines(tokenizer: Any) -> Iterator[Slowed]:
    model = make_ensemble(tokenizer)
    model.generation_config.eos_token_id = model.config.eos_token_id = None  # texts have the length that is asked for
    engines = Slowed({None: model, 2: model}, tokenizer, kv_cache_gib=0.05)
    yield engines
    engines.stop()


@pytest.fixture(scope="module")
def browser(engines: Slowed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str]]:
    profile = tmp_path_factory.mktemp("browser") / "profile"
    with serving(engines, ServeSettings(model="tiny")) as url, open_page(profile) as page:
        yield page, url


@pytest.fixture
def page(browser: tuple[Page, str]) -> Page:
    page, url = browser
    page.open(url)
    page.wait_for("document.querySelectorAll('#legend span').length > 0")
    page.problems.clear()
    return page


def test_text_streams_with_members_as_colours(page: Page, tmp_path: Path) -> None:
    assert page.text("#legend").split() == ["north", "south"]
    page.type("#prompt", "The quick brown fox")
    page.type("#max-tokens", "60")
    page.choose("#rule", "mixture")
    page.choose("#depth", "2")
    page.choose("#temperature", "0.9")
    assert page.text("#temperature-value") == "0.9"
    page.click("#go")
    page.wait_for(f"{NUM_TOKENS} > 3")
    page.wait_for(IS_IDLE)
    assert page.text("#text").startswith("The quick brown fox")
    tints = page.evaluate("[...new Set([...document.querySelectorAll('#text .token')].map((e) => e.style.background))]")
    assert len(tints) > 3
    assert page.evaluate("document.querySelectorAll('#strip > div').length") == 60
    assert page.text("#status").startswith("60 tokens")
    page.screenshot(Path(os.environ.get("GROWTX_SCREENSHOT", tmp_path / "page.png")))
    assert page.problems == []


def test_what_is_wrong_is_said_and_the_page_goes_on(page: Page) -> None:
    page.click("#own-weights")
    page.evaluate("document.querySelectorAll('.weight').forEach((input) => { input.value = '0'; })")
    page.click("#go")
    page.wait_for("document.querySelector('#status.error') !== null")
    assert "zero" in page.text("#status")
    page.click("#own-weights")
    page.click("#go")
    page.wait_for(f"{NUM_TOKENS} > 3")
    page.wait_for(IS_IDLE)
    assert "tokens" in page.text("#status")


def test_stop_ends_the_text_on_the_page_and_in_the_engine(page: Page, engines: Slowed) -> None:
    engines.seconds_per_token = SLOW_SECONDS
    try:
        page.type("#max-tokens", "240")
        page.click("#go")
        page.wait_for(f"{NUM_TOKENS} > 1")
        assert engines.num_running == 1
        page.click("#stop")
        page.wait_for(IS_IDLE)
        deadline = time.monotonic() + 1
        while engines.num_running:
            assert time.monotonic() < deadline, "the place in the batch is not free after a second"
            time.sleep(0.01)
    finally:
        engines.seconds_per_token = 0.0
    assert page.evaluate(NUM_TOKENS) < 240
    assert page.text("#status").split()[0] != "240"
    assert page.problems == []


@pytest.fixture(scope="module")
def single(tokenizer: Any, browser: tuple[Page, str]) -> Iterator[tuple[Page, str, Slowed]]:
    """One model, no ensemble, with a context of exactly what the form shows at first."""
    model = make_model(tokenizer, max_position_embeddings=128, eos_token_id=None)
    engines = Slowed({None: model}, tokenizer, kv_cache_gib=0.05)
    with serving(engines, ServeSettings(model="tiny")) as url:
        yield browser[0], url, engines
    engines.stop()


def continued(page: Page) -> str:
    """The status line after a click on the button."""
    page.click("#go")
    page.wait_for(f"{IS_IDLE} && document.getElementById('status').textContent !== ''")
    return page.text("#status")


def test_the_form_as_it_first_appears_is_valid_for_a_short_context(single: tuple[Page, str, Slowed]) -> None:
    page, url, _ = single
    page.open(url)
    page.wait_for("document.getElementById('about').textContent.startsWith('tiny')")
    page.problems.clear()
    assert page.evaluate("document.getElementById('max-tokens').value") == "127"
    assert page.evaluate("document.getElementById('form').checkValidity()")
    assert "tokens" in continued(page)
    page.evaluate("document.getElementById('prompt').value = ''")
    assert continued(page).startswith("127 tokens")
    assert page.problems == []


def test_tokens_are_counted_however_they_arrive(single: tuple[Page, str, Slowed]) -> None:
    page, url, engines = single
    page.open(url)
    page.wait_for("document.getElementById('about').textContent.startsWith('tiny')")
    engines.num_together = 7
    try:
        page.type("#max-tokens", "40")
        assert continued(page).startswith("40 tokens")
        assert page.evaluate("document.querySelectorAll('#text span').length") < 40
    finally:
        engines.num_together = 1


def test_empty_fields_are_left_to_the_server(single: tuple[Page, str, Slowed]) -> None:
    page, url, _ = single
    page.open(url)
    page.wait_for("document.getElementById('about').textContent.startsWith('tiny')")
    page.evaluate("for (const id of ['max-tokens', 'seed']) document.getElementById(id).value = ''")
    assert continued(page).startswith("16 tokens")
    assert page.evaluate("document.querySelector('#status.error')") is None
