"""Limits of how often something may happen per minute, for each of many sources."""

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_SOURCES = 10_000
"""Sources that are remembered; the one that was quiet for the longest time is forgotten first."""


class Rates:
    """Counts events by source. A source may use up a minute's number at once, and gets it back evenly over time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By source: how many events it has used up, and at which time that was true."""

    def wait_s(self, source: str, per_minute: int) -> float:
        """Seconds until the source may cause its next event; 0 if it may do so now."""
        return max(0.0, self._used(source, per_minute) - per_minute + 1) * 60 / per_minute

    def add(self, source: str, per_minute: int) -> None:
        """Counts an event of a source."""
        self._sources[source] = (self._used(source, per_minute) + 1, self._clock())
        self._sources.move_to_end(source)
        if len(self._sources) > MAX_SOURCES:
            self._sources.popitem(last=False)

    def _used(self, source: str, per_minute: int) -> float:
        used, since = self._sources.get(source, (0.0, 0.0))
        return max(0.0, used - (self._clock() - since) * per_minute / 60)
