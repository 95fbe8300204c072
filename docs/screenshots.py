"""The pictures of the status page in these documents: ``python docs/screenshots.py``, as root, 90 seconds.

They are of a real run: two instances that take themselves for machines, Redis, RabbitMQ, a minute of load in
windows of a second; then RabbitMQ is stopped. It needs what the tests need:
``tox exec -e tests -- python docs/screenshots.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.async_api import expect

from kit.browser import PHONE, chromium, tab
from kit.servers import RabbitServer, RedisServer
from kit.serving import Serving, send

_IMAGES = Path(__file__).parent / "images"
_LOAD_S = 64
# Smaller than a screen, so that letters can be read where the picture is shown.
_DESK = {"width": 960, "height": 600}


def _machine(name: str, *flags: str) -> Serving:
    return Serving(
        *flags, window=1, prefix=("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name)
    )


async def _load(machines: list[Serving], seconds: int) -> None:
    """Ids by the hundred, some more than once, more and less of them by and by."""
    chance, new = random.Random(7), itertools.count()  # noqa: S311  no secret
    for tenth in range(seconds * 10):
        share = 120 + 50 * math.sin(tenth / 90) + chance.randrange(20)
        for machine in machines:
            numbers = list(itertools.islice(new, round(share)))
            await send(machine, numbers + chance.choices(numbers, k=len(numbers) // 3), connections=2)
        await asyncio.sleep(0.1)


async def _main() -> None:
    with contextlib.ExitStack() as running:
        redis = running.enter_context(RedisServer("redis", tcp=True, appendonly="yes", appendfsync="always"))
        rabbit = running.enter_context(RabbitServer())
        flags = ("--redis-url", redis.tcp_url, "--amqp-url", rabbit.url)
        machines = [running.enter_context(_machine(name, *flags)) for name in ("web-1", "web-2")]
        for machine in machines:
            await machine.ready()
        await _load(machines, _LOAD_S)
        async with chromium() as browser:
            url = f"http://127.0.0.1:{machines[0].admin_port}/"
            under_load = asyncio.create_task(_load(machines, 30))
            async with tab(browser, url, viewport=_DESK) as page:
                await expect(page.locator(".machine")).to_have_count(2)
                await expect(page.locator(".verdict h2")).to_have_text("Counting")
                end = await page.locator("#readout").bounding_box()
                assert end is not None
                await page.screenshot(
                    path=_IMAGES / "status-page.png",
                    full_page=True,
                    clip={"x": 0, "y": 0, "width": _DESK["width"], "height": end["y"] - 4},
                )
            async with tab(browser, url, viewport=PHONE, color_scheme="dark") as page:
                await expect(page.locator("body")).to_have_attribute("data-stream", "live")
                rabbit.kill()
                await expect(page.locator(".reasons")).to_contain_text("RabbitMQ")
                await expect(page.locator(".late .figure")).to_have_text("4", timeout=15_000)
                await page.screenshot(path=_IMAGES / "status-page-phone.png")
            under_load.cancel()


if __name__ == "__main__":
    asyncio.run(_main())
