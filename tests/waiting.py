"""Waiting for a condition, with a limit: a test that waits without one hangs the whole suite when it fails."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.005
LIMIT_S = 20.0


def wait_until(condition: Callable[[], object], limit_s: float = LIMIT_S, log: Path | None = None) -> None:
    """Returns once `condition` is true; fails after `limit_s` seconds, and then shows the end of the file `log`."""
    ends = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= ends:
            said = "" if log is None else f":\n{log.read_text(errors='replace')[-3000:]}"
            raise AssertionError(f"the condition was not met within {limit_s} s{said}")
        time.sleep(POLL_S)


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """The same for a coroutine: others run while it waits."""
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, f"the condition was not met within {limit_s} s"
        await asyncio.sleep(0.001)
