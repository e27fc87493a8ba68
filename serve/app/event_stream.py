"""Sends the end of Gradio's event stream together with the last event, so that the page cannot miss it.

Gradio writes the last pending event and then, at once, the message that closes the stream. If the second arrives late,
the page has already reacted to the first: it asks for the next event, believes that the stream is still open, and waits
for that event without end. This happens behind a proxy that forwards the two apart. When both are in one chunk, the
page reads both before it asks.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.prefix import route_of

STREAM = "/gradio_api/queue/data"


class WholeEvents:
    """ASGI middleware around the app: what Gradio writes to the event stream without waiting is one chunk."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or route_of(scope) != STREAM:
            await self._app(scope, receive, send)
            return
        chunks = _Chunks(send)
        try:
            await self._app(scope, receive, chunks.add)
        finally:
            await chunks.sent()


class _Chunks:
    """Collects chunks until their writer waits for something; then a task sends them as one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._parts: list[bytes] = []
        self._sending: asyncio.Task[None] | None = None

    async def add(self, message: Message) -> None:
        """Takes a message of the response. The last one has been sent when this returns."""
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        self._parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            await self.sent()
            body = b"".join(self._parts)
            self._parts.clear()
            await self._send({"type": "http.response.body", "body": body})
        elif self._sending is None or self._sending.done():
            await self.sent()
            self._sending = asyncio.create_task(self._send_parts())

    async def sent(self) -> None:
        """Waits until all chunks are sent; raises what sending raised."""
        sending, self._sending = self._sending, None
        if sending is not None:
            await sending

    async def _send_parts(self) -> None:
        while self._parts:
            body = b"".join(self._parts)
            self._parts.clear()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
