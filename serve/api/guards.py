"""The middleware around all routes: request ids, host names, the API key, limits of the body, and refusals while the
server stops.

It also counts the requests in progress, for which draining waits, and tells the routes which client sends a request. It
is plain ASGI, so that streams pass unchanged.
"""

import asyncio
import base64
import binascii
import math
import re
import secrets
from collections.abc import Callable, Collection

from prometheus_client import Counter
from starlette.requests import Request

from serve.access import Access, client_at
from serve.api.errors import response_of
from serve.api.origins import is_foreign, values_of
from serve.api.prefix import App, Message, Receive, Scope, Send, route_of
from serve.clients import Client
from serve.errors import (
    ForeignOriginError,
    NotAuthorizedError,
    RateLimitError,
    RequestError,
    ServiceError,
    TooLargeError,
    TooSlowError,
    UnavailableError,
    WrongHostError,
)
from serve.limits import Limits
from serve.rates import Rates
from serve.service import Service
from serve.throttled import ThrottledLog

OPEN = frozenset({"/health", "/live", "/ready"})
"""Paths that do not require the key."""
ALWAYS = frozenset({*OPEN, "/metrics"})
"""Paths that are served while the server is stopping, and not counted as requests in progress."""
WRONG_KEYS_PER_MINUTE = 30
"""Requests with a wrong key that an address may send per minute. Further ones are refused in the same way, but with
status 429, whichever key they have; the right key is always accepted."""
SLOW_BODY_S = 10.0
"""Seconds that a body may always take."""
SLOW_BODY_BYTES = 10_000
"""Bytes that must arrive for every further second."""
HEARTBEAT = "/gradio_api/heartbeat/"
"""Part of the path of the stream that a browser keeps open while the app's page is open; not counted either."""
REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
"""Values of ``x-request-id`` that are accepted from clients."""


class Guards:
    """ASGI middleware that checks every request before the app gets it."""

    def __init__(
        self,
        app: App,
        service: Service,
        limits: Limits,
        access: Access,
        counter: Counter,
        log: ThrottledLog,
        mounts: Collection[str] = (),
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            app: the app.
            service: counts the requests in progress.
            limits: of the body.
            access: who may use the server.
            counter: of responses, by status.
            log: gets the refusals.
            mounts: paths of apps that pages of other sites may not use.
            is_full: whether the server takes no other requests, since it is answering as many as it can.
        """
        self._app, self._service, self._limits, self._counter = app, service, limits, counter
        self._access, self._mounts, self._is_full = access, tuple(mounts), is_full
        self._requests, self._wrong_keys = Rates(), Rates()
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                try:
                    self._check(scope, route_of(scope))
                except ServiceError:
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
            scope["state"]["client"] = self._check(scope, path)
            if counted and self._service.draining:
                raise UnavailableError("the server is stopping", retry_after_s=5)
            if path not in ALWAYS and self._is_full():
                raise UnavailableError("the server answers as many requests as it can; retry later", retry_after_s=5)
            await self._app(scope, await self._bounded(scope, receive), tagged)
        except ServiceError as error:
            # Raised before the app started, so that no response has been sent yet.
            await response_of(error)(scope, receive, tagged)
        finally:
            self._service.num_requests -= counted

    def _check(self, scope: Scope, path: str) -> Client:
        """The client that sends a request.

        Raises:
            ServiceError: the request is refused, because of its headers or because of how many there were.
        """
        _check_headers(scope)
        access = self._access
        peer = (scope.get("client") or ("unknown",))[0]
        forwarded = [value.decode("latin-1") for value in values_of(scope, b"x-forwarded-for")]
        sender = access.sender_of(peer, forwarded)
        scope.setdefault("state", {})["address"] = sender
        host = values_of(scope, b"host")
        # Programs that speak HTTP 1.0 need not send the header; browsers do.
        if host and not access.hosts.allow(host[0].decode("latin-1")):
            self.log.write("host", f"refused: the host name {host[0][:100]!r} is not among those that are allowed")
            raise WrongHostError(
                "this server does not answer to the host name of this request; use the server's own, or start it with "
                "--allowed-host NAME"
            )
        if path.startswith(tuple(f"{mount}/" for mount in self._mounts)) and is_foreign(scope, access.hosts):
            self.log.write(
                "origin", f"refused: a page of another site uses the app ({values_of(scope, b'origin')[:1]})"
            )
            raise ForeignOriginError(
                "pages of other sites may not use the app; if this is the app's own page behind a proxy, start the "
                "server with --allowed-host and the name in the browser's address bar"
            )
        client = client_at(sender) if path in OPEN else self._identified(scope, sender)
        if scope.get("method") == "POST" and path.startswith("/v1/"):
            self._check_rate(client)
        return client

    def _identified(self, scope: Scope, sender: str) -> Client:
        """The client whose key a request has, or that of the address where no key is required.

        Raises:
            NotAuthorizedError: the key is missing or wrong.
            RateLimitError: the key is wrong, and so were many before it.
        """
        if self._access.keys is None:
            return client_at(sender)
        given = _key_of(scope)
        client = None if given is None else self._access.keys.client_of(given)
        if client is not None:
            return client
        self.log.write("key", f"refused: a request from {sender} has {'no' if given is None else 'a wrong'} key")
        if given is not None:
            wait_s = self._wrong_keys.wait_s(sender, WRONG_KEYS_PER_MINUTE)
            if wait_s > 0:
                raise RateLimitError(
                    "too many requests with a wrong key came from this address; send the right one, or retry later",
                    retry_after_s=math.ceil(wait_s),
                )
            self._wrong_keys.add(sender, WRONG_KEYS_PER_MINUTE)
        raise NotAuthorizedError("the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")

    def _check_rate(self, client: Client) -> None:
        """Counts a request for text.

        Raises:
            RateLimitError: the client has made as many as it may.
        """
        most = client.requests_per_minute or self._access.requests_per_minute
        if most is None:
            return
        wait_s = self._requests.wait_s(client.name, most)
        if wait_s > 0:
            raise RateLimitError(
                f"this client has made its {most} requests per minute; retry after {math.ceil(wait_s)} s",
                retry_after_s=math.ceil(wait_s),
            )
        self._requests.add(client.name, most)

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Reads the whole body and returns a ``receive`` that replays it.

        Raises:
            TooLargeError: the body exceeds the size limit.
            TooSlowError: the body did not arrive in time.
        """
        # The time limit grows with what has arrived, up to ``body_s``.
        began, most_s = asyncio.get_running_loop().time(), self._limits.body_s
        most = self._limits.body_bytes
        too_large = TooLargeError(
            f"the body has more than {most} bytes; send at most {most} bytes (the server's option --body-bytes)"
        )
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > most:
            raise too_large
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout_at(began + min(SLOW_BODY_S, most_s)) as limit:
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    limit.reschedule(began + min(SLOW_BODY_S + size / SLOW_BODY_BYTES, most_s))
                    more = message.get("more_body", False)
                    if size > most:
                        raise too_large
        except TimeoutError:
            raise TooSlowError(
                f"the request's body did not arrive within {min(SLOW_BODY_S, most_s):.0f} s and one further second for "
                f"each {SLOW_BODY_BYTES // 1000} kB, at most {most_s:.0f} s"
            ) from None
        waiting: list[Message] = [{"type": "http.request", "body": b"".join(chunks), "more_body": more}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return replay


def client_of(request: Request) -> Client:
    """The client that sends a request."""
    client = request.state.client
    assert isinstance(client, Client)
    return client


def _check_headers(scope: Scope) -> None:
    """Refuses requests that servers and proxies read in different ways.

    Raises:
        RequestError: a header has several values, or the length of the body is given in two ways.
    """
    for name in (b"host", b"authorization", b"content-length"):
        if len(values_of(scope, name)) > 1:
            raise RequestError(f"the request has the header {name.decode()} several times; send it once")
    if values_of(scope, b"content-length") and values_of(scope, b"transfer-encoding"):
        raise RequestError("the request has both content-length and transfer-encoding; send one of them")


def _key_of(scope: Scope) -> bytes | None:
    """The key that a request has, as a bearer token or as the password of basic authentication; None: it has none."""
    header = next(iter(values_of(scope, b"authorization")), None)
    if header is None:
        return None
    kind, _, given = header.partition(b" ")
    if kind.lower() == b"basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    elif kind.lower() != b"bearer":
        return None
    return given.strip()


def _request_id(scope: Scope) -> str:
    """The client's ``x-request-id`` if it is valid, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
