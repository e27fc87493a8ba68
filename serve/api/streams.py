"""Responses to clients that may disconnect: bodies sent in pieces, and work that is cancelled with its client."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve.limits import ConnectionLimits

Result = TypeVar("Result")
SEND_S = ConnectionLimits.unread_s
"""Seconds. A response is ended if the client reads nothing for this long."""
WHOLE = 65_536
"""Bytes. Bodies up to this size are sent whole, with their length."""
COMMENT = b": still running\n\n"
"""A comment of server-sent events, which clients ignore."""


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


class PiecesResponse(Response):
    """Sends the pieces of an iterator, which is closed when the client disconnects or stops reading."""

    media_type = "application/json"

    def __init__(self, pieces: AsyncIterator[bytes], stack: AsyncExitStack | None = None) -> None:
        """
        Args:
            pieces: of the body.
            stack: closed at the end, whether or not anything was sent.
        """
        super().__init__()
        del self.headers["content-length"]
        self._pieces, self._stack = pieces, stack or AsyncExitStack()

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
            await self._send_message(send, start)
            async for piece in self._pieces:
                await self._send_message(send, {"type": "http.response.body", "body": piece, "more_body": True})
            await self._send_message(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            return
        finally:
            close = getattr(self._pieces, "aclose", None)
            if close is not None:
                await close()

    async def _send_message(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(SEND_S):
            await send(message)


async def json_response(pieces: AsyncIterator[bytes]) -> Response:
    """A response with these pieces as its body: with its length if it is short, else piece by piece."""
    first = bytearray()
    async for piece in pieces:
        first += piece
        if len(first) > WHOLE:
            return PiecesResponse(_cut(bytes(first), pieces))
    return Response(bytes(first), media_type=PiecesResponse.media_type)


async def _cut(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces, cut so that the next one is only sent once the client has read most of those before."""
    for start in range(0, len(first), WHOLE):
        yield first[start : start + WHOLE]
    async for piece in others:
        for start in range(0, len(piece), WHOLE):
            yield piece[start : start + WHOLE]


class EventStream(PiecesResponse):
    """Sends server-sent events, with a comment whenever there was no event for some time."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack, comment_s: float) -> None:
        """
        Args:
            events: encoded server-sent events.
            stack: see ``PiecesResponse``.
            comment_s: seconds without an event after which a comment is sent.
        """
        super().__init__(events, stack)
        self.headers["cache-control"] = "no-cache"
        # Tells nginx not to buffer the stream, which would delay events.
        self.headers["x-accel-buffering"] = "no"
        self._comment_s = comment_s
        self._sent_at = time.monotonic()
        self._sending = asyncio.Lock()

    async def _send(self, send: Send) -> None:
        comments = asyncio.ensure_future(self._send_comments(send))
        try:
            await super()._send(send)
        finally:
            comments.cancel()

    async def _send_message(self, send: Send, message: Message) -> None:
        async with self._sending:
            await super()._send_message(send, message)
        self._sent_at = time.monotonic()

    async def _send_comments(self, send: Send) -> None:
        """Sends comments, but none before the head or while an event waits for the client."""
        comment = {"type": "http.response.body", "body": COMMENT, "more_body": True}
        with suppress(TimeoutError, OSError):
            while True:
                await asyncio.sleep(max(0.001, self._sent_at + self._comment_s - time.monotonic()))
                if time.monotonic() - self._sent_at >= self._comment_s and not self._sending.locked():
                    await self._send_message(send, comment)


def event(values: dict[str, Any]) -> bytes:
    """Encodes one server-sent event."""
    return b"data: " + json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


END = b"data: [DONE]\n\n"
