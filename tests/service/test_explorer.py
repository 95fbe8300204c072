"""The readable page of the API, in Chromium."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from kit.browser import tab
from kit.serving import Serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN = "s3cret-and-long-enough"


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_an_operation_is_tried(browser: Browser, token: str | None) -> None:
    """All operations are shown, and what is tried is answered, with the token that the browser was given. The
    console says nothing, and nothing is asked of others."""
    flags = ("--admin-token", token) if token else ()
    options: dict[str, Any] = {}
    if token:
        options = {"http_credentials": {"username": "", "password": token}}
    with Serving(*flags) as serving:
        at = f"http://127.0.0.1:{serving.admin_port}"
        async with tab(browser, f"{at}/api", **options) as page:
            fields = {"Authorization": f"Bearer {token}"} if token else {}
            answer = await serving.ask("/openapi.json", admin=True, fields=fields)
            described = json.loads(answer.body)["paths"]
            await expect(page.locator(".opblock-summary-path")).to_have_count(len(described))
            shown = await page.locator(".opblock-summary-path").all_inner_texts()
            assert {path.replace("\u200b", "") for path in shown} == described.keys()
            status = page.locator("#operations-default-status")
            await status.locator(".opblock-summary").click()
            await status.get_by_role("button", name="Try it out").click()
            await status.get_by_role("button", name="Execute").click()
            tried = status.locator(".live-responses-table")
            await expect(tried.locator("tbody .response-col_status")).to_contain_text("200")
            await expect(tried).to_contain_text('"namespace": "idagg"')
