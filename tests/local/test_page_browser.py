"""The status page in Chromium, with states that it is told of."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from idagg.errors import StoreError
from idagg.read.fleet import Status
from idagg.read.page.view import view
from idagg.run import broadcast
from idagg.run import page as served
from idagg.store.kept import KeptWindow
from kit.browser import PHONE, tab
from kit.page_site import Site
from kit.page_states import HOSTILE, STATES, Seen
from kit.servers import free_port
from kit.waiting import LIMIT_S, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_READ_S", "_READ_SOON_S", "_FRESH_S"):
        monkeypatch.setattr(served, name, 0.02)
    for name in ("PAUSE_S", "LOOK_S"):
        monkeypatch.setattr(broadcast, name, 0.02)
    # Nobody is slow only since the machine stands still.
    monkeypatch.setattr(broadcast, "SLOW_S", 2 * LIMIT_S)
    monkeypatch.setattr(served, "_READING_S", LIMIT_S)


@contextlib.asynccontextmanager
async def site(state: str) -> AsyncIterator[Site]:
    made = Site(state)
    await made.start(free_port())  # one that stays its own while it is stopped
    try:
        yield made
    finally:
        await made.stop()


async def is_shown(page: Page, state: str) -> None:
    """Wait until the page shows this state."""
    want = view(*STATES[state]())
    await expect(page.locator("body")).to_have_attribute("data-stream", "live")
    await expect(page.locator(".verdict p")).to_have_text(want.verdict.sentence)
    await expect(page.locator(".glance .figure")).to_have_text(
        [want.last.count, want.current.count, want.late.count, want.requests.count]
    )
    await expect(page.locator(".log li")).to_have_count(len(want.recent))


async def texts(page: Page) -> list[str]:
    """All that it says, hidden parts included, but for what only a script or only its absence shows."""
    found: list[str] = await page.evaluate(
        """() => [...document.querySelectorAll("main *, header *")]
            .filter((node) => !node.children.length && !node.closest("noscript, #live, #lost"))
            .map((node) => node.textContent + [...node.attributes].map((a) => `${a.name}=${a.value}`))"""
    )
    return found


# What axe-core is asked in each look, and in which states. Structure is the same in all looks.
LOOKS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "light": ({}, {}, {"fresh", "broker_away", "store_away", "late", "estimate", "hostile", "many"}),
    "dark": (
        {"color_scheme": "dark"},
        {"runOnly": ["color-contrast"]},
        {"broker_away", "store_away", "late", "estimate"},
    ),
    "phone": ({"viewport": PHONE}, {}, {"late"}),
}


@pytest.mark.parametrize("look", LOOKS)
async def test_no_barrier_in_any_state(browser: Browser, look: str) -> None:
    """axe-core finds nothing, and nothing is wider than a phone."""
    options, asked, states = LOOKS[look]
    async with site("fresh") as shown, tab(browser, shown.url, **options) as page:
        found = {}
        for state in STATES:
            shown.show(state)
            await is_shown(page, state)
            if state != "many":  # which takes axe-core long
                await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, state
            if state in states:
                checked = await Axe().run(page, options=asked)
                if checked.violations_count:
                    found[state] = checked.generate_report()
        assert found == {}


async def test_the_script_says_what_the_server_says(browser: Browser) -> None:
    """Without script the page has the same texts and the same plot, in every state."""
    async with (
        site("fresh") as shown,
        tab(browser, shown.url) as live,
        tab(browser, shown.url, java_script_enabled=False) as still,
    ):
        for state in STATES:
            shown.show(state)
            await is_shown(live, state)

            async def both() -> tuple[list[str], list[str]]:
                """The windows come with a later event than the verdict does."""
                await still.reload()
                return await texts(live), await texts(still)

            await eventually(both, lambda pair: pair[0] == pair[1])


async def test_without_script_it_loads_itself_again(browser: Browser) -> None:
    async with site("counting") as shown, tab(browser, shown.url, java_script_enabled=False) as page:
        shown.show("big")
        await expect(page.locator(".figure").first).to_have_text("580\u202f112\u202f000")
        assert "loads itself again every 5 s" in (await page.locator("footer").text_content() or "")


async def test_a_lost_stream_is_told_and_found_again(browser: Browser) -> None:
    """What was last known stays, without its colours. Then the page goes on by itself."""
    async with site("counting") as shown, tab(browser, shown.url, may_say="ERR_") as page:
        await is_shown(page, "counting")
        port = int(shown.url.rsplit(":", 1)[1].strip("/"))
        await shown.stop()
        await expect(page.locator("#lost")).to_contain_text("since 10:54:21 UTC")
        await expect(page.locator(".sign .lost")).to_be_visible()
        await expect(page.locator(".sign .good")).to_be_hidden()
        await expect(page.locator(".figure").first).to_have_text("3\u202f927")
        shown.show("broker_away")
        await shown.start(port)
        await is_shown(page, "broker_away")
        await expect(page.locator("#lost")).to_be_hidden()


async def test_a_page_too_many_asks_instead(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "MAX_LISTENERS", 0)
    async with site("counting") as shown, tab(browser, shown.url, may_say="503") as page:
        await is_shown(page, "counting")
        shown.show("big")
        await is_shown(page, "big")


async def test_a_page_of_another_version_loads_itself_again(browser: Browser) -> None:
    """As after an upgrade: what the script knows may not fit what the server says."""
    async with site("counting") as shown, tab(browser, shown.url) as page:
        await is_shown(page, "counting")
        await page.evaluate("document.body.dataset.build = 'old'")
        await expect(page.locator("body")).not_to_have_attribute("data-build", "old")
        await is_shown(page, "counting")


async def test_news_that_cannot_be_made(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why. The page says that it is lost, and goes on once they can be made again."""
    async with site("counting") as shown, tab(browser, shown.url, may_say="50[03]") as page:
        await is_shown(page, "counting")

        async def fail() -> Status:
            raise RuntimeError("no status")

        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(shown, "status", fail)
            await expect(page.locator("#lost")).to_contain_text("since 10:54:21 UTC")
        shown.show("big")
        await is_shown(page, "big")
    assert "/page/events cannot be made" in caplog.text
    assert "no status" in caplog.text
    caplog.clear()


async def test_windows_are_read_by_keys(browser: Browser) -> None:
    """The arrow keys go from window to window, and the live region reads each."""
    async with site("late") as shown, tab(browser, shown.url) as page:
        await is_shown(page, "late")
        plot, readout = page.locator("#plot"), page.locator("#readout")
        await plot.focus()
        await expect(readout).to_have_attribute("aria-live", "polite")
        said = view(*STATES["late"]()).plot
        open_window = "10:54: 1\u202f432 unique ids so far; this window is open"
        assert said.current_readout == open_window
        for key, read in (
            ("ArrowLeft", open_window),
            ("PageUp", said.readouts[50]),
            ("Home", said.readouts[0]),
            ("ArrowRight", said.readouts[1]),
            ("End", open_window),
            ("ArrowRight", open_window),
        ):
            await page.keyboard.press(key)
            await expect(readout).to_have_text(read)
        await page.keyboard.press("ArrowLeft")
        await expect(readout).to_have_text("10:53: not sealed yet; its ids are safe in the store")
        for _ in range(2):
            await page.keyboard.press("ArrowLeft")
        await expect(readout).to_contain_text("not delivered yet: late")
        await page.keyboard.press("Escape")
        await expect(readout).to_contain_text("arrow keys")


async def test_windows_are_read_by_pointer(browser: Browser) -> None:
    async with site("counting") as shown, tab(browser, shown.url) as page:
        await is_shown(page, "counting")
        box = await page.locator("#plot svg").first.bounding_box()
        assert box is not None
        await page.mouse.move(box["x"] + box["width"] * 59.5 / 61, box["y"] + 20)
        await expect(page.locator("#readout")).to_contain_text("10:53: 3\u202f927 unique ids, exact")
        assert await page.locator(".cursor").first.get_attribute("x") == "590"
        await page.mouse.move(0, 0)
        await expect(page.locator("#readout")).to_contain_text("Point at a window")


async def test_a_focus_is_seen(browser: Browser) -> None:
    async with site("counting") as shown, tab(browser, shown.url) as page:
        await is_shown(page, "counting")
        for _ in range(4):
            await page.keyboard.press("Tab")
            outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", await page.evaluate("document.activeElement.outerHTML")


@pytest.mark.parametrize("has_script", [True, False])
async def test_hostile_texts_are_only_shown(browser: Browser, has_script: bool) -> None:
    async with site("hostile") as shown, tab(browser, shown.url, java_script_enabled=has_script) as page:
        if has_script:
            shown.show("counting")
            await is_shown(page, "counting")
            shown.show("hostile")
            await is_shown(page, "hostile")
            assert await page.evaluate("typeof hacked") == "undefined"
        assert await page.locator("img, td script, q *, bdi *").count() == 0
        harmless = HOSTILE.replace("\u202e", "\ufffd").replace("\x1b", "\ufffd").replace("\x00", "\ufffd")
        assert await page.locator(".reasons q").first.text_content() == harmless
        assert await page.locator(".machine .name").first.text_content() == harmless


async def test_what_a_user_has_folded_stays_folded(browser: Browser) -> None:
    """Although the rows are filled again each second, and move when a machine comes or goes."""
    async with site("counting") as shown, tab(browser, shown.url) as page:
        await is_shown(page, "counting")
        await page.locator(".machine summary").nth(1).click()
        shown.seen.status.machines.reverse()
        await expect(page.locator(".machine .name").first).to_have_text("web-2")
        assert [await machine.get_attribute("open") for machine in await page.locator(".machine").all()] == [
            None,
            "",
        ]


async def test_a_store_that_is_away_takes_no_window_from_the_page(browser: Browser) -> None:
    async with site("counting") as shown, tab(browser, shown.url) as page:
        await is_shown(page, "counting")

        async def away(from_s: int, limit: int) -> Sequence[KeptWindow]:
            raise StoreError("away")

        shown.newest = away  # type: ignore[method-assign]  # for the rest of this test
        shown.seen = Seen(STATES["store_away"]().status, [])
        await is_shown(page, "store_away")
        await expect(page.locator("#plot + * ~ details tbody tr")).to_have_count(60)


async def test_the_policy_allows_nothing_else(browser: Browser) -> None:
    """No other script, style or origin."""
    async with (
        site("counting") as shown,
        tab(
            browser,
            shown.url,
            may_say="Content Security Policy|requires 'Trusted",
            may_ask="http://127.0.0.1:1/",
        ) as page,
    ):
        refused = await page.evaluate(
            """async () => {
                const refused = [];
                document.addEventListener("securitypolicyviolation", (event) => {
                    refused.push(event.effectiveDirective);
                });
                for (const [name, text] of [["script", "hacked = 1"], ["style", "body { opacity: 0.5 }"]]) {
                    const made = document.createElement(name);
                    try { made.textContent = text; } catch { /* a script's text has to be trusted */ }
                    document.body.append(made);
                }
                try { document.body.innerHTML = "<b>x</b>"; } catch { /* so has this */ }
                await fetch("http://127.0.0.1:1/").catch(() => null);
                for (let looks = 0; looks < 100 && new Set(refused).size < 3; looks++) {
                    await new Promise((done) => setTimeout(done, 50));
                }
                return [...new Set(refused)].sort();
            }"""
        )
        assert refused == ["connect-src", "require-trusted-types-for", "style-src-elem"]
        assert await page.evaluate("typeof hacked") == "undefined"
        assert await page.evaluate("getComputedStyle(document.body).opacity") == "1"
