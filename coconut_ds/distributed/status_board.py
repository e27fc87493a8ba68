"""What the watchdogs of all ranks tell each other, through the process group's store."""

import threading
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch.distributed as dist

from coconut_ds.distributed.ranks import Ranks

PREFIX = "coconut_ds/watchdog"
MOST_SHOWN = 16
"""Largest number of ranks that are described one by one."""
ENDING_S = 2.0
"""Seconds to wait for the thread's end."""
_uses = count()
"""Numbers the uses, which gives each one keys of its own in the store."""


class StatusBoard:
    """A number that grows when any rank comes further, and a line of each rank that makes no progress.

    The store is in one process, which may be the one that has been stopped; a call then never returns. So a thread of
    its own makes the calls.
    """

    def __init__(self, ranks: Ranks, pause_s: float) -> None:
        """Starts the thread; ``pause_s``: seconds between two calls."""
        self._ranks, self._pause_s = ranks, pause_s
        self._moved, self._anyone = threading.Event(), threading.Event()
        self._line: str | None = None
        self._lines: dict[int, str] = {}
        self._told, self._closed = threading.Event(), threading.Event()
        store: Any = dist.distributed_c10d._get_default_store()
        # A client of its own: calls of one client wait for each other.
        self._store = dist.PrefixStore(f"{PREFIX}/{next(_uses)}", store.clone())
        self._thread = threading.Thread(target=self._run, name="watchdog's calls", daemon=True)
        self._thread.start()

    def has_anyone_moved(self, moved: bool) -> bool:
        """Notes whether this rank has come further. Returns whether any rank has, as far as this one has heard since
        the last call."""
        if moved:
            self._moved.set()
        heard = self._anyone.is_set()
        self._anyone.clear()
        return heard

    def exchange(self, line: str, patience_s: float) -> list[str]:
        """Tells the other ranks a line, waits for theirs, and returns on rank 0 a line about each; else nothing."""
        self._told.clear()
        self._line = line
        self._told.wait(patience_s)
        if not self._ranks.is_first:
            return []
        lines = [
            f"rank {rank} {self._lines.get(rank, 'gives no sign of life: it is stopped, or its machine is gone')}"
            for rank in range(self._ranks.size)
        ]
        # Those that say nothing come first.
        lines.sort(key=lambda text: "no sign of life" not in text)
        return lines[:MOST_SHOWN] + ([f"and {len(lines) - MOST_SHOWN} more ranks"] if len(lines) > MOST_SHOWN else [])

    def withdraw(self) -> None:
        """Takes back this rank's line, since it has come further."""
        self._line = ""

    def close(self) -> None:
        """Ends the thread, unless the store does not answer it."""
        self._closed.set()
        self._told.set()
        self._thread.join(ENDING_S)

    def _run(self) -> None:
        last: int | None = None
        # When a rank ends, the store may end with it.
        with suppress(dist.DistError, RuntimeError):
            self._store.set_timeout(timedelta(days=1))
            while True:
                moved = self._moved.is_set()
                self._moved.clear()
                total = self._store.add("moves", int(moved))
                if last is not None and total != last:
                    self._anyone.set()
                last = total
                if self._line is not None:
                    self._tell(self._line)
                if self._closed.wait(self._pause_s):
                    return

    def _tell(self, line: str) -> None:
        self._line = None
        own = f"line/{self._ranks.rank}"
        if not line:
            self._store.delete_key(own)
            return
        self._store.set(own, line)
        if self._ranks.is_first:
            # The watchdogs of the others notice it at most two looks later.
            self._closed.wait(2 * self._pause_s)
            keys = [f"line/{rank}" for rank in range(self._ranks.size)]
            self._lines = {
                rank: self._store.get(key).decode() for rank, key in enumerate(keys) if self._store.check([key])
            }
        self._told.set()
