"""Responses to clients that may disconnect: server-sent events, and work that is cancelled with its client."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")
SEND_S = 30.0
"""Seconds. A stream is ended if the client reads nothing for this long."""


class ClientGoneError(Exception):
    """The client disconnected before the response was ready."""


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Returns the result of ``work``, which is cancelled as soon as the client disconnects.

    Raises:
        ClientGoneError: the client disconnected.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends the events of an iterator, which is closed when the client disconnects or stops reading."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        """
        Args:
            events: encoded server-sent events.
            stack: closed at the end, whether or not anything was sent.
        """
        super().__init__()
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        # Tells nginx not to buffer the stream, which would delay events.
        self.headers["x-accel-buffering"] = "no"
        self._events, self._stack = events, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for one in (sending, gone):
                one.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self._stack.aclose()

    async def _send(self, send: Send) -> None:
        try:
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            async for event in self._events:
                async with asyncio.timeout(SEND_S):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            return
        finally:
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()


def event(values: dict[str, Any]) -> bytes:
    """Encodes one server-sent event."""
    return b"data: " + json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


END = b"data: [DONE]\n\n"
