"""The pictures of the status page in these documents: ``python docs/screenshots.py``, as root, 3 minutes.

They are of a real run: two instances that take themselves for machines, Redis, RabbitMQ, minutes of load in
windows of 2 s; then RabbitMQ is stopped. It needs what the tests need:
``tox exec -e tests -- python docs/screenshots.py``.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import itertools
import math
import random
import struct
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.async_api import Browser, FloatRect, expect

from kit.browser import PHONE, chromium, tab
from kit.servers import RabbitServer, RedisServer
from kit.serving import Serving, send

_IMAGES = Path(__file__).parent / "images"
_WINDOW_S = 2
_LOAD_S = 62 * _WINDOW_S
# Smaller than a screen, so that letters can be read where the picture is shown.
_DESK = {"width": 960, "height": 600}

# The browser has a decoder of PNG.
_PIXELS = """async (png) => {
    const blob = await (await fetch(`data:image/png;base64,${png}`)).blob();
    const image = await createImageBitmap(blob);
    const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
    context.drawImage(image, 0, 0);
    const bytes = context.getImageData(0, 0, image.width, image.height).data;
    const letters = [];
    for (const byte of bytes) letters.push(String.fromCharCode(byte));
    return [image.width, image.height, btoa(letters.join(""))];
}"""


def _machine(name: str, *flags: str) -> Serving:
    return Serving(
        *flags, window=_WINDOW_S, prefix=("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name)
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


async def _keep(name: str, browser: Browser, png: bytes) -> None:
    """Write it with a palette of the commonest colours: a third of the size, and nobody sees it."""
    page = await browser.new_page()
    width, height, pixels = await page.evaluate(_PIXELS, base64.b64encode(png).decode())
    await page.close()
    rgba = base64.b64decode(pixels)
    colours = [rgba[at : at + 3] for at in range(0, len(rgba), 4)]
    alike = collections.defaultdict[bytes, collections.Counter[bytes]](collections.Counter)
    for colour in colours:
        alike[bytes(channel >> 4 for channel in colour)][colour] += 1
    assert len(alike) <= 256, "too many colours"
    place_of = {colour: place for place, counts in enumerate(alike.values()) for colour in counts}
    common = [counts.most_common(1)[0][0] for counts in alike.values()]
    places = bytes(place_of[colour] for colour in colours)
    rows = b"".join(b"\0" + places[at : at + width] for at in range(0, len(places), width))
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": b"".join(common),
        b"IDAT": zlib.compress(rows, 9),
        b"IEND": b"",
    }
    written = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    (_IMAGES / f"{name}.png").write_bytes(written)


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
                await expect(page.locator("progress")).to_have_attribute("value", "1")
                end = await page.locator("#readout").bounding_box()
                assert end is not None
                clip: FloatRect = {"x": 0, "y": 0, "width": _DESK["width"], "height": end["y"] - 4}
                await _keep("status-page", browser, await page.screenshot(full_page=True, clip=clip))
            async with tab(browser, url, viewport=PHONE, color_scheme="dark") as page:
                await expect(page.locator("body")).to_have_attribute("data-stream", "live")
                rabbit.kill()
                await expect(page.locator(".reasons")).to_contain_text("RabbitMQ")
                await expect(page.locator(".late .figure")).to_have_text("4", timeout=15_000)
                await _keep("status-page-phone", browser, await page.screenshot())
            under_load.cancel()


if __name__ == "__main__":
    asyncio.run(_main())
