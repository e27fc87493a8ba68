"""Receivers that queue the events of jobs: one for plain threads, one for coroutines."""

import asyncio
import queue
from collections.abc import Sequence

from serve.engine.jobs import Event, Job


class Mailbox:
    """Queues events for a plain thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Job, Event]] = queue.SimpleQueue()

    def deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        """See ``Receiver``."""
        for one in events:
            self._queue.put(one)

    def get(self, timeout_s: float | None = None) -> tuple[Job, Event]:
        """Waits for the next event; ``timeout_s`` None waits without limit.

        Raises:
            TimeoutError: no event arrived within ``timeout_s`` seconds.
        """
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None


class AsyncMailbox:
    """Queues events for coroutines of the event loop in which it was created."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[Job, Event]] = asyncio.Queue()

    def deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        """See ``Receiver``. Wakes the event loop once per call."""
        # A closed loop has no waiting coroutines.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put, events)

    async def get(self) -> tuple[Job, Event]:
        """Waits for the next event."""
        return await self._queue.get()

    def _put(self, events: Sequence[tuple[Job, Event]]) -> None:
        for one in events:
            self._queue.put_nowait(one)
