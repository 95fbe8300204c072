"""`idagg counts` and `idagg status` of a real idagg."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys

from idagg.errors import Exit
from kit.serving import PATIENT, Serving
from kit.waiting import eventually


async def idagg(serving: Serving, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Once the store answers it, which may stand still for a moment."""
    url = f"http://127.0.0.1:{serving.admin_port}"
    command = [sys.executable, "-m", "idagg", *arguments, "--admin-url", url]
    return await eventually(
        lambda: asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
        ),
        lambda done: done.returncode not in (Exit.NO_ANSWER, Exit.NOT_NOW),
    )


async def test_counts_in_each_form() -> None:
    """All forms tell the windows that the log file has, oldest first, with pages and without."""
    serving = Serving(*PATIENT, window=1)
    try:
        await asyncio.to_thread(serving.start)
        await serving.ready()
        assert await serving.hit() == 200
        await serving.delivered()
        shown = await idagg(serving, "counts", "--from", "-1h", "--format", "json")
        assert shown.returncode == 0
        assert "no record is kept of windows before 20" in shown.stderr  # it has run for seconds
        windows = json.loads(shown.stdout)
        counts = await serving.delivered()  # one that is shown may be on its way
        assert {one["window_start"]: one["unique_ids"] for one in windows}.items() <= counts.items()
        assert [one["window_start"] for one in windows] == sorted(one["window_start"] for one in windows)
        # By default the last ones are shown: a busy machine may have had more windows meanwhile.
        shown = await idagg(serving, "counts", "--limit", "10000", "--format", "csv")
        rows = list(csv.DictReader(shown.stdout.splitlines()))
        assert [row["window_start"] for row in rows][: len(windows)] == [
            one["window_start"] for one in windows
        ]
        (head, line) = (await idagg(serving, "counts", "--limit", "1")).stdout.splitlines()
        assert head.startswith("window (UTC)")
        assert line.split()[3] == "yes"
        # On a busy machine something may be late for a moment.
        status = await eventually(
            lambda: idagg(serving, "status"), lambda told: told.stdout.splitlines()[-1:] == ["trouble: none"]
        )
        assert status.returncode == 0
        refused = await idagg(serving, "counts", "--from", "2999-01-01")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "in the future" in refused.stderr
    finally:
        await asyncio.to_thread(serving.close)
