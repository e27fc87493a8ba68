"""A mirror of the metrics in a thread of its own, so that a mirror that fails or hangs never delays or ends a run."""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

LIMIT_S = 60.0
"""Longest time that the mirror may take for one line, or to end, in seconds."""


class AbandonableMirror(Protocol):
    """A destination of the metrics whose calls may fail, or never return."""

    def log(self, values: dict[str, Any], step: int) -> None:
        """Receives the values of one line. ``step``: updates completed."""

    def close(self) -> None:
        """Called after the last line."""

    def abandon(self) -> None:
        """Ends whatever belongs to the mirror, without waiting for it. A call that hangs must then fail."""


class MirrorError(Exception):
    """The mirror takes too long."""


class MirrorThread:
    """Passes lines on to a mirror. If the mirror has failed or hangs, the next call abandons it and raises.

    A line that the run has logged is never waited for; only ``close`` waits, for at most ``limit_s`` seconds.
    """

    def __init__(self, mirror: AbandonableMirror, limit_s: float = LIMIT_S) -> None:
        self._mirror, self._limit_s = mirror, limit_s
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._began: float | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def log(self, values: dict[str, Any], step: int) -> None:
        """Queues one line.

        Raises:
            Exception: whatever the mirror has raised for an earlier line.
            MirrorError: it has not finished an earlier line in time.
        """
        began = self._began
        if self._error is not None or (began is not None and time.monotonic() - began > self._limit_s):
            self._give_up()
        self._calls.put(lambda: self._mirror.log(values, step))

    def close(self) -> None:
        """Waits until the mirror has received all lines and has ended.

        Raises:
            Exception, MirrorError: as ``log``.
        """
        self._calls.put(self._mirror.close)
        self._calls.put(None)
        self._thread.join(self._limit_s)
        if self._error is not None or self._thread.is_alive():
            self._give_up()

    def _give_up(self) -> None:
        with suppress(Exception):
            self._mirror.abandon()
        if self._error is None:
            raise MirrorError(f"did not answer for {self._limit_s:.0f} s")
        if not isinstance(self._error, Exception):
            # SystemExit, for example, would end the run.
            raise MirrorError(f"{type(self._error).__name__}: {self._error}")
        raise self._error

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._began = time.monotonic()
            try:
                call()
            except BaseException as error:
                self._error = error
                return
            self._began = None
