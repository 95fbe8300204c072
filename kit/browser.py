"""A headless Chromium, Debian's, and tabs of it in which nothing may go wrong."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright, expect

from kit.waiting import LIMIT_S

_FLAGS = ["--disable-dev-shm-usage", "--no-proxy-server", "--disable-background-networking"]
# What a page has to show, it shows in the end; 5 s, the default, is little on a busy machine.
expect.set_options(timeout=LIMIT_S * 1000)

PHONE = {"width": 400, "height": 800}
DESK = {"width": 1280, "height": 900}


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    program = shutil.which("chromium")
    assert program is not None, "Chromium is missing"
    async with async_playwright() as playwright:
        # Root may not have a sandbox; only pages of our own are opened.
        browser = await playwright.chromium.launch(
            executable_path=program, chromium_sandbox=False, args=_FLAGS
        )
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def tab(
    browser: Browser, url: str, *, may_say: str | None = None, may_ask: str = "data:", **options: Any
) -> AsyncIterator[Page]:
    """A tab with a context of its own, at ``url``.

    At the end nothing was said on its console but lines in which the pattern ``may_say`` is found, no script
    has failed, and nobody was asked but the URL's own origin, and what begins with ``may_ask``.
    """
    said: list[str] = []
    elsewhere: list[str] = []
    async with await browser.new_context(**{"viewport": DESK} | options) as context:
        page = await context.new_page()
        page.set_default_timeout(LIMIT_S * 1000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))

        def requested(asked: str) -> None:
            if urlsplit(asked)[:2] != urlsplit(url)[:2] and not asked.startswith(("data:", may_ask)):
                elsewhere.append(asked)

        page.on("request", lambda request: requested(request.url))
        await page.goto(url)
        yield page
    unexpected = [line for line in said if may_say is None or not re.search(may_say, line)]
    assert (unexpected, elsewhere) == ([], []), (unexpected, elsewhere)
