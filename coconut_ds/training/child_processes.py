"""Processes that this process has started, as far as the system tells."""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def child_processes() -> set[int]:
    """Ids of the children of this process; empty if the system does not tell."""
    found: set[int] = set()
    with suppress(OSError):
        for thread in Path("/proc/self/task").iterdir():
            # A thread may have ended.
            with suppress(OSError, ValueError):
                found |= {int(word) for word in (thread / "children").read_text(encoding="ascii").split()}
    return found


def kill(children: Iterable[int]) -> None:
    """Kills those of these processes that are still children of this process."""
    for child in child_processes().intersection(children):
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
