"""The middleware around all routes: request ids, the API key, limits of the body, and refusals while the server stops.

It also counts the requests in progress, for which draining waits. It is plain ASGI, so that streams pass unchanged.
"""

import asyncio
import base64
import binascii
import hmac
import re
import secrets

from prometheus_client import Counter

from serve.api.errors import response_of
from serve.api.prefix import App, Message, Receive, Scope, Send, route_of
from serve.errors import NotAuthorizedError, ServiceError, TooLargeError, TooSlowError, UnavailableError
from serve.limits import Limits
from serve.service import Service

OPEN = frozenset({"/health"})
"""Paths that do not require the key."""
ALWAYS = frozenset({"/health", "/metrics"})
"""Paths that are served while the server is stopping, and not counted as requests in progress."""
HEARTBEAT = "/gradio_api/heartbeat/"
"""Part of the path of the stream that a browser keeps open while the app's page is open; not counted either."""
REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
"""Values of ``x-request-id`` that are accepted from clients."""


class Guards:
    """ASGI middleware that checks every request before the app gets it."""

    def __init__(self, app: App, service: Service, limits: Limits, key: str | None, counter: Counter) -> None:
        self._app, self._service, self._limits, self._counter = app, service, limits, counter
        self._key = key.encode() if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "websocket" and not self._knows_key(scope):
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                self._counter.labels(status=str(message["status"])).inc()
            await send(message)

        path = route_of(scope)
        counted = path not in ALWAYS and HEARTBEAT not in path
        self._service.num_requests += counted
        try:
            if path not in OPEN and not self._knows_key(scope):
                raise NotAuthorizedError("the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")
            if counted and self._service.draining:
                raise UnavailableError("the server is stopping", retry_after_s=5)
            await self._app(scope, await self._bounded(scope, receive), tagged)
        except ServiceError as error:
            # Raised before the app started, so that no response has been sent yet.
            await response_of(error)(scope, receive, tagged)
        finally:
            self._service.num_requests -= counted

    def _knows_key(self, scope: Scope) -> bool:
        """Whether the request has the key, as a bearer token or as the password of basic authentication."""
        if self._key is None:
            return True
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, given = header.partition(b" ")
        if kind.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(given.strip(), self._key)

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Reads the whole body and returns a ``receive`` that replays it.

        Raises:
            TooLargeError: the body exceeds the size limit.
            TooSlowError: the body did not arrive in time.
        """
        most = self._limits.body_bytes
        too_large = TooLargeError(
            f"the body has more than {most} bytes; send at most {most} bytes (the server's option --body-bytes)"
        )
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > most:
            raise too_large
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout(self._limits.body_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    more = message.get("more_body", False)
                    if size > most:
                        raise too_large
        except TimeoutError:
            raise TooSlowError(f"the request's body did not arrive within {self._limits.body_s:.0f} s") from None
        waiting: list[Message] = [{"type": "http.request", "body": b"".join(chunks), "more_body": more}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return replay


def _request_id(scope: Scope) -> str:
    """The client's ``x-request-id`` if it is valid, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
