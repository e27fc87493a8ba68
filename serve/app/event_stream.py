"""Makes the page notice in time that the server has ended its event stream, also behind a slow proxy.

Gradio ends a session's event stream when none of the session's events is running, and the page opens a new one with its
next event. In between, the page still believes that the stream is open. An event that it sends then is never answered:
the server has ended the stream, and the page opens no other. There are two ways into this:

* The page reacts to the last event of the stream before it reads the message that ends it. ``WholeEvents`` sends both
  in one chunk, which the page reads whole before it reacts.
* The visitor asks for something while the end of the stream is under way. So the answer to each event tells how many
  streams of the session have ended, and ``SCRIPT`` lets the page handle that answer only after it has read their ends.
"""

import asyncio
from collections import OrderedDict
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coconut_ds.strict_json import JsonError, parse_loosely
from serve.api.prefix import route_of

STREAM = "/gradio_api/queue/data"
EVENT = "/gradio_api/queue/join"
ENDED = "X-Ended-Streams"
"""Header of the answer to an event: the number of the session's streams that the server had ended by then."""
END = b'"msg":"close_stream"'
"""Part of the message that ends a stream."""
MAX_SESSIONS = 10_000
"""Sessions whose ended streams are counted; beyond that, those that were used least recently are forgotten."""
SCRIPT = f"""<script>
{{
  const original = window.fetch, streams = [];
  window.fetch = async (asked, options) => {{
    const path = new URL(asked.url ?? asked, document.baseURI).pathname;
    if (path.endsWith('{STREAM}'))
      // The page aborts a stream when it has read its end.
      streams.push(new Promise(resolve => asked.signal?.addEventListener('abort', resolve)));
    const answer = await original(asked, options);
    if (path.endsWith('{EVENT}')) {{
      const ended = streams.slice(0, Number(answer.headers.get('{ENDED}')));
      const patience = new Promise(resolve => setTimeout(resolve, 30000));
      await Promise.race([Promise.all(ended), patience]);
    }}
    return answer;
  }};
}}
</script>"""
"""Part of the document's head. A stream that breaks has no end to wait for, so the page waits at most 30 seconds."""


class WholeEvents:
    """ASGI middleware around the app: what Gradio writes to the event stream without waiting is one chunk.

    Answers to events have the header ``ENDED``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._ended: OrderedDict[str, int] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        route = route_of(scope) if scope["type"] == "http" else ""
        if route == STREAM:
            await self._stream(scope, receive, send)
        elif route == EVENT:
            await self._event(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks, is_open = _Chunks(send), True

        def end() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self._count(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0])

        async def add(message: Message) -> None:
            # Counted before anything is awaited, so that an event which arrives from now on is told.
            if END in message.get("body", b""):
                end()
            await chunks.add(message)

        try:
            await self._app(scope, receive, add)
        finally:
            end()
            await chunks.sent()

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: list[bytes] = []

        async def read() -> Message:
            message = await receive()
            parts.append(message.get("body", b""))
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[ENDED] = str(self._ended.get(_session(b"".join(parts)), 0))
            await send(message)

        await self._app(scope, read, answer)

    def _count(self, session: str) -> None:
        """Notes that a stream of the session has ended."""
        self._ended[session] = self._ended.pop(session, 0) + 1
        if len(self._ended) > MAX_SESSIONS:
            self._ended.popitem(last=False)


def _session(body: bytes) -> str:
    """The session of an event; "" if the body is not one, which Gradio answers with an error."""
    try:
        found = parse_loosely(body.decode("utf-8", "replace"))
    except JsonError:
        return ""
    return str(found.get("session_hash", "")) if isinstance(found, dict) else ""


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
