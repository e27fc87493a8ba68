"""A small app behind the server's guards, and requests to it without a network."""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from serve.api.guards import Guards
from serve.clients.access import Access
from serve.clients.keys import Keys
from serve.limits import Limits
from serve.monitoring.throttled import ThrottledLog

KEY = "sesame"

BODY_BYTES = 20

Message = dict[str, Any]


class Work:
    """What the guards know of the service."""

    def __init__(self) -> None:
        self.num_requests = 0
        self.draining = False


@dataclass
class Exchange:
    """One request with its client: what is sent to the app and what comes back."""

    chunks: list[bytes] = field(default_factory=lambda: [b""])
    """The body as the client sends it. None at the end: the client leaves instead of sending the rest."""
    pause_s: float = 0.0
    """Before each chunk."""
    sent: list[Message] = field(default_factory=list)
    num_received: int = 0

    async def receive(self) -> Message:
        await asyncio.sleep(self.pause_s)
        self.num_received += 1
        if self.num_received > len(self.chunks) or self.chunks[self.num_received - 1] is None:
            return {"type": "http.disconnect"}
        more = self.num_received < len(self.chunks)
        return {"type": "http.request", "body": self.chunks[self.num_received - 1], "more_body": more}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    def header(self, name: str) -> list[str]:
        """All values of an answer's header."""
        return [value.decode() for key, value in self.sent[0]["headers"] if key.decode().lower() == name]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


async def echo(scope: Message, receive: Callable, send: Callable) -> None:
    """Answers with the body, in the pieces that arrive."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while (message := await receive())["type"] == "http.request":
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        if not message["more_body"]:
            break
    await send({"type": "http.response.body", "body": b""})


class Guarded:
    """An app behind guards, and the parts that a test looks at."""

    def __init__(self, app: Callable[..., Awaitable[None]] = echo, key: str | None = None, **limits: float) -> None:
        self.work = Work()
        self.log = ThrottledLog(logging.getLogger("serve"))
        self.method, self.client = "POST", None
        self.counter = Counter("answers", "Answers.", ("status",), registry=CollectorRegistry())
        access = Access(None if key is None else Keys.single(key))
        self._guards = Guards(
            app, self.work, Limits(**{"body_bytes": BODY_BYTES, **limits}), access, self.counter, self.log
        )

    def ask(
        self,
        path: str = "/v1/completions",
        headers: dict[bytes, bytes] | list[tuple[bytes, bytes]] | None = None,
        exchange: Exchange | None = None,
        kind: str = "http",
    ) -> Exchange:
        """Sends a request through the guards; at the end no request may be counted as work any more."""
        exchange = exchange or Exchange()
        listed = headers if isinstance(headers, list) else list((headers or {}).items())
        scope = {"type": kind, "path": path, "headers": listed, "method": self.method, "client": self.client}
        try:
            asyncio.run(self._guards(scope, exchange.receive, exchange.send))
        finally:
            assert self.work.num_requests == 0
        return exchange

    def answers(self) -> dict[str, float]:
        """How often each status was counted."""
        (metric,) = self.counter.collect()
        return {one.labels["status"]: one.value for one in metric.samples if one.name.endswith("_total")}


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + key.encode()}


def basic(password: str, user: str = "anybody") -> dict[bytes, bytes]:
    return {b"authorization": b"Basic " + base64.b64encode(f"{user}:{password}".encode())}
