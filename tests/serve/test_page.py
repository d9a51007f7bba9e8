"""The built-in page in headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.engines import Engines
from serve.settings import ServeSettings
from tests.serve.conftest import make_ensemble
from tests.serve.local_server import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture
def page(tmp_path: Path, tokenizer: Any) -> Iterator[Any]:
    model = make_ensemble(tokenizer)
    engines = Engines({None: model, 2: model}, tokenizer, kv_cache_gib=0.05)
    with serving(engines, ServeSettings(model="tiny")) as url, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=FLAGS, viewport={"width": 900, "height": 900}
        )
        page = browser.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.goto(url)
        yield page
        browser.close()
    engines.stop()


def test_text_streams_with_members_as_colours(page: Any, tmp_path: Path) -> None:
    page.wait_for_selector("#legend span")
    assert page.locator("#legend span").all_inner_texts() == ["north", "south"]
    page.fill("#prompt", "The quick brown fox")
    page.fill("#max-tokens", "60")
    page.select_option("#rule", "mixture")
    page.click("#go")
    page.wait_for_function("document.querySelectorAll('#text .token').length > 3")
    page.wait_for_function("!document.getElementById('go').disabled", timeout=60_000)
    tints = {token.get_attribute("style") for token in page.locator("#text .token").all()}
    assert len(tints) > 3
    assert page.locator("#strip > div").count() > 10
    assert "tokens" in page.inner_text("#status")
    screenshot = os.environ.get("GROWTX_SCREENSHOT", str(tmp_path / "page.png"))
    page.screenshot(path=screenshot, full_page=True)
    assert page.problems == []


def test_what_is_wrong_is_said_and_the_page_goes_on(page: Any) -> None:
    page.wait_for_selector("#legend span")
    page.check("#own-weights")
    for weight in page.locator(".weight").all():
        weight.fill("0")
    page.click("#go")
    page.wait_for_selector("#status.error")
    assert "zero" in page.inner_text("#status")
    page.uncheck("#own-weights")
    page.click("#go")
    page.wait_for_function("document.querySelectorAll('#text .token').length > 3", timeout=60_000)
    page.click("#stop")
    page.wait_for_function("!document.getElementById('go').disabled")
