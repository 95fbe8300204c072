"""The oracle's callers, before a real service."""

from __future__ import annotations

from kit import oracle
from kit.servers import RedisServer
from kit.serving import PATIENT, Serving
from kit.waiting import long_window


async def test_the_journals_of_a_real_service(any_server: RedisServer) -> None:
    """What a load notes is in the store, id by id, and what it did not send is told of."""
    with Serving("--redis-url", any_server.url, *PATIENT, window=long_window()) as serving:
        async with oracle.Load(serving) as load:
            await load.goes_on()
        windows = await oracle.open_windows(any_server.url)
        assert oracle.wrong_ids(load, windows) == []
        assert (load.failed, load.unknown) == (set(), set())
        load.ok.add(-1)
        assert oracle.wrong_ids(load, windows) == ["A: 1 ids that got their ok are lost, such as -1"]
        serving.stop()
