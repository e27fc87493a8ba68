"""When a request must have ended."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from serve.errors import TimeLimitError


@dataclass(frozen=True)
class Deadline:
    """The end of a request's time limit."""

    ends_at: float
    """Time of ``time.monotonic``, which is also the event loop's clock."""
    limit_s: float
    """Seconds from the request's beginning to its deadline."""
    set_by: str
    """Who set the limit, for the error message."""

    @classmethod
    def after(cls, most_s: float, own_s: float | None = None) -> "Deadline":
        """The deadline of a request that begins now.

        Args:
            most_s: the server's time limit.
            own_s: the time limit that the client gave; None: it gave none.
        """
        if own_s is not None and own_s < most_s:
            return cls(time.monotonic() + own_s, own_s, "the header X-Request-Timeout")
        return cls(time.monotonic() + most_s, most_s, "the option --request-s")

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(0.0, self.ends_at - time.monotonic())

    def error(self) -> TimeLimitError:
        """The error of a request that has not ended in time."""
        return TimeLimitError(f"the request took longer than {self.limit_s:g} s ({self.set_by})")

    @asynccontextmanager
    async def limiting(self) -> AsyncIterator[None]:
        """Cancels the block with a ``TimeLimitError`` at the deadline."""
        try:
            async with asyncio.timeout_at(self.ends_at):
                yield
        except TimeoutError:
            raise self.error() from None
