"""A mirror of the metrics in a thread of its own, so that a mirror that fails or hangs never delays or ends a run."""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

LIMIT_S = 60.0
"""Longest time that the mirror may take for one line, in seconds."""
FINISH_TIMES = 5.0
"""How many times as long it may take to end: it may have much to send."""
POLL_S = 0.05
"""Seconds between two looks at the mirror's present call while it is waited for."""


class AbandonableMirror(Protocol):
    """A destination of the metrics whose calls may fail, or never return."""

    name: str
    """What warnings call it."""

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

    A line that the run has logged is never waited for; only ``close`` waits, for at most
    ``limit_s`` seconds without an end of a call, and ``FINISH_TIMES`` as long for the last one.
    """

    def __init__(self, mirror: AbandonableMirror, limit_s: float = LIMIT_S) -> None:
        self._mirror, self._limit_s, self.name = mirror, limit_s, mirror.name
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], float] | None] = queue.SimpleQueue()
        self._current: tuple[float, float] | None = None
        """When the mirror's present call began, and its limit in seconds."""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def begin(self, start: Callable[[], None]) -> None:
        """Runs the mirror's start in its thread, since some trackers belong to the thread that starts them.

        Waits at most ``FINISH_TIMES`` times ``limit_s`` seconds, since it may have to reach a server.

        Raises:
            Exception: whatever ``start`` raises.
            MirrorError: it has not returned in time.
        """
        done = threading.Event()

        def started() -> None:
            start()
            done.set()

        self._calls.put((started, FINISH_TIMES * self._limit_s))
        self._wait(done.is_set)

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Waits until ``is_over``, or until the thread has ended or its present call takes too long."""
        late_s = None
        while late_s is None and not is_over() and self._thread.is_alive():
            self._thread.join(min(POLL_S, self._limit_s))
            late_s = self._late_s()
        if self._error is not None or late_s is not None:
            self._give_up(late_s)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Queues one line.

        Raises:
            Exception: whatever the mirror has raised for an earlier line.
            MirrorError: it has not finished an earlier line in time.
        """
        late_s = self._late_s()
        if self._error is not None or late_s is not None:
            self._give_up(late_s)
        self._calls.put((lambda: self._mirror.log(values, step), self._limit_s))

    def close(self) -> None:
        """Waits until the mirror has received all lines and has ended.

        Raises:
            Exception, MirrorError: as ``log``.
        """
        self._calls.put((self._mirror.close, FINISH_TIMES * self._limit_s))
        self._calls.put(None)
        self._wait(lambda: False)

    def _late_s(self) -> float | None:
        """The limit of the mirror's present call, in seconds, if the call has exceeded it; else None."""
        current = self._current
        return current[1] if current is not None and time.monotonic() - current[0] > current[1] else None

    def _give_up(self, limit_s: float | None) -> None:
        with suppress(Exception):
            self._mirror.abandon()
        if self._error is None:
            raise MirrorError(f"did not answer for {limit_s or self._limit_s:.0f} s")
        if not isinstance(self._error, Exception):
            # SystemExit, for example, would end the run.
            raise MirrorError(f"{type(self._error).__name__}: {self._error}")
        raise self._error

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, limit_s = item
            self._current = time.monotonic(), limit_s
            try:
                call()
            except BaseException as error:
                self._error = error
                return
            finally:
                self._current = None
