"""The newest kept windows, for the status page."""

from __future__ import annotations

from idagg.run.reading import Reading
from idagg.store.kept import END_OF_TIME_S, KeptWindow


class KeptWindows:
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def newest(self, from_s: int, limit: int) -> list[KeptWindow]:
        """Those that begin at this time or later, newest first. Raises StoreError."""
        async with self._reading.view() as view:
            return await view.kept.page(from_s, END_OF_TIME_S, limit=limit, newest_first=True)
