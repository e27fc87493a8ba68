"""A server of small answers in the event loop of a test, for tests of its connections."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from serve.limits import ConnectionLimits
from serve.monitoring.metrics import Metrics
from serve.monitoring.throttled import ThrottledLog
from serve.network.connections import Connection, Connections
from serve.network.listener import Listener, listening

LOG = logging.getLogger("serve")
ASK = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope, receive, send):
    """Answers at once, when the body has arrived, when told to, or with more than the system keeps for a client."""
    path = scope["path"]
    if path == "/read":
        while (message := await receive()).get("more_body", False):
            pass
        if message["type"] == "http.disconnect":
            return
    if path == "/wait":
        await scope["state"]["go"].wait()
    body = b"x" * (64 << 20 if path == "/large" else 2)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


class Running:
    """A server in this event loop."""

    def __init__(self, limits: ConnectionLimits, tls: ssl.SSLContext | None, is_exempt: bool) -> None:
        self.metrics, self.go = Metrics(), asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []
        self.connections = Connections(limits, self.metrics, ThrottledLog(LOG), lambda address: is_exempt)
        # uvicorn's own timer has no effect.
        config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, timeout_keep_alive=0)
        config.load()
        self.state = ServerState()
        self.sockets = listening("127.0.0.1", 0)
        self.address = self.sockets[0].getsockname()
        self.listener = Listener(
            self.sockets,
            self.connections,
            lambda source: Connection(config, self.state, {"go": self.go}, self.connections, source),
            tls,
        )

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"coconut:{name}", labels) or 0.0

    async def open(self, sends: bytes = b"", **options) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address, **options)
        self.writers.append(writer)
        writer.write(sends)
        return reader, writer

    async def ask(self, path: bytes = b"x", **options) -> bytes:
        reader, writer = await self.open(ASK % path, **options)
        answer = await reader.readuntil(b"\r\n\r\nxx")
        writer.close()
        return answer


def serve(
    test: Callable[[Running], Coroutine[Any, Any, None]],
    most: int = 8,
    tls: ssl.SSLContext | None = None,
    is_exempt: bool = True,
    head_s: float = 20.0,
    idle_s: float = 20.0,
    unread_s: float = 30.0,
) -> None:
    """Runs a coroutine with a server, which looks at its connections all the time."""

    async def sweep(running: Running) -> None:
        while True:
            running.connections.sweep(asyncio.get_running_loop().time())
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def running():
        one = Running(ConnectionLimits(most, head_s, idle_s, unread_s), tls, is_exempt)
        sweeping = asyncio.ensure_future(sweep(one))
        try:
            yield one
        finally:
            one.go.set()
            sweeping.cancel()
            one.listener.close()
            for writer in one.writers:
                writer.transport.abort()
            for connection in list(one.connections._all):
                connection.end("the test is over")
            await asyncio.sleep(0.05)

    async def whole() -> None:
        async with asyncio.timeout(20), running() as one:
            await test(one)

    asyncio.run(whole())
