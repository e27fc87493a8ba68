"""Receivers of what happens to jobs: one for plain threads, one for coroutines."""

import asyncio
import queue
from collections.abc import Sequence

from serve.model_thread import Event, Job


class Mailbox:
    """For plain threads."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Job, Event]] = queue.SimpleQueue()

    def deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        """See ``Receiver``."""
        for one in events:
            self._queue.put(one)

    def get(self, timeout_s: float | None = None) -> tuple[Job, Event]:
        """The next event.

        Raises:
            TimeoutError: none came in time.
        """
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None


class AsyncMailbox:
    """For coroutines of the loop that runs when it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[Job, Event]] = asyncio.Queue()

    def deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        """See ``Receiver``. Wakes the loop once."""
        # A loop that is closed has nobody who waits.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put, events)

    async def get(self) -> tuple[Job, Event]:
        """The next event."""
        return await self._queue.get()

    def _put(self, events: Sequence[tuple[Job, Event]]) -> None:
        for one in events:
            self._queue.put_nowait(one)
