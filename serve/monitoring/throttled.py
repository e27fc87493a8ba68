"""A log that clients cannot fill: of each kind of event it writes one line in a while, with the number of events."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PERIOD_S = 10.0
"""Seconds between two lines about the same kind of event."""


@dataclass
class _Kind:
    """One kind of event."""

    level: int
    written_at: float
    num_since: int = 0
    """Events since the last line."""
    message: str = ""
    """What the last of them would have written."""

    def begin_period(self, now: float) -> tuple[int, str, int]:
        """Begins another period, and returns the level, the message and the number of events of the one that ended."""
        line = (self.level, self.message, self.num_since)
        self.num_since, self.written_at = 0, now
        return line


class ThrottledLog:
    """Writes the first event of a kind at once, and then one line per period about all that happened in it.

    That line is written with the first event after the period, or by ``flush`` if none comes.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._kinds: dict[str, _Kind] = {}
        self._lock = threading.Lock()

    def write(self, kind: str, message: str, level: int = logging.WARNING) -> None:
        """Reports an event.

        Args:
            kind: one of a small fixed number of kinds; never something that a client can choose.
            message: the line.
            level: of the line.
        """
        if self.admits(kind, message, level):
            self._log.log(level, "%s", message)

    def admits(self, kind: str, message: str, level: int) -> bool:
        """Whether an event may be written now; if not, it is counted in a later line. Arguments: see ``write``."""
        with self._lock:
            now, found = self._clock(), self._kinds.get(kind)
            if found is None or (not found.num_since and now - found.written_at >= PERIOD_S):
                self._kinds[kind] = _Kind(level, now)
                return True
            found.num_since += 1
            found.message = message
            if now - found.written_at < PERIOD_S:
                return False
            line = found.begin_period(now)
        self._write_all([line])
        return False

    def flush(self, everything: bool = False) -> None:
        """Writes the lines whose period is over; the server calls this about once a second.

        Args:
            everything: also those whose period is not over, because the server stops.
        """
        with self._lock:
            now = self._clock()
            due = [
                one.begin_period(now)
                for one in self._kinds.values()
                if one.num_since and (everything or now - one.written_at >= PERIOD_S)
            ]
        self._write_all(due)

    def _write_all(self, lines: Sequence[tuple[int, str, int]]) -> None:
        for level, message, count in lines:
            self._log.log(level, "%s (%d of this kind since the last line about them)", message, count)


class ThrottledRecords(logging.Filter):
    """Lets the warnings of another package pass once in a while, of each place in its code; the others are counted."""

    def __init__(self, log: ThrottledLog) -> None:
        super().__init__()
        self._throttled = log

    def filter(self, record: logging.LogRecord) -> bool:
        """See ``logging.Filter``. Lines below a warning pass always."""
        if record.levelno < logging.WARNING:
            return True
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            # The server itself ended a request that did not finish in time, and says so.
            return False
        message = record.getMessage().strip()
        if error is not None:
            message += f": {error!r}"
        return self._throttled.admits(f"{record.pathname}:{record.lineno}", message, record.levelno)
