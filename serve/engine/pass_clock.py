"""Measures each forward pass and each part of a function by itself, and says when one has run implausibly long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

HUNG_S = 20.0
"""Seconds by which a pass or a part may exceed what is plausible before it is reported as hung."""
FIRST_S = 280.0
"""Seconds that a pass may plausibly take as long as none has been measured: it takes the cache's memory, and on CUDA
loads kernels and captures graphs."""


class PassClock:
    """Knows since when the current pass or part has been running. The model's thread writes it, any thread reads it."""

    def __init__(self) -> None:
        self.plausible_s = FIRST_S
        """Seconds that a pass may plausibly take on this machine."""
        self._running: tuple[str, float] | None = None
        """What is running, and when it began."""

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Measures what happens in a ``with`` block; ``what`` names it in ``problem``."""
        self._running = what, time.perf_counter()
        try:
            yield
        finally:
            self._running = None

    @property
    def problem(self) -> str | None:
        """What has been running for too long; None if nothing has."""
        running = self._running
        if running is None:
            return None
        what, began = running
        limit = self.plausible_s + HUNG_S
        return f"{what} has been running for more than {limit:.0f} s" if time.perf_counter() - began > limit else None
