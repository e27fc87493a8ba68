"""The server process: starts, serves, and shuts down gracefully.

After SIGTERM or Ctrl-C the server drains: ``/health`` answers 503, new requests are refused, and running requests may
finish within ``--drain-s`` seconds; those that do not finish get an error. A second signal fails them at once.
"""

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from serve.api.app import Hooks, create_app
from serve.api.records import Record
from serve.clients.access import Access
from serve.clients.addresses import address_of
from serve.monitoring.logs import throttle_others
from serve.monitoring.metrics import Metrics
from serve.monitoring.throttled import ThrottledLog
from serve.network.connections import Connection, Connections
from serve.network.listener import Listener, listening
from serve.network.settings import Network
from serve.network.stopping import end_at_once, within
from serve.requests.service import Service

log = logging.getLogger("serve")
GRACE_S = 2.0
"""The last seconds of the drain limit, reserved for sending the error to requests that did not finish."""
CLOSE_S = 1.5
"""Seconds that the models' threads may take to end after the server has stopped."""
LATE_S = 4.0
"""Seconds after the drain limit at which the process ends in any case."""
SWEEP_TICKS = 5
"""Ticks between two looks at all connections; there are ten a second."""


class Server(uvicorn.Server):
    """uvicorn's server, except that it accepts connections itself, and drains before it stops, with exit code 0."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        connections: Connections,
        sockets: Sequence[socket.socket],
        network: Network,
    ) -> None:
        super().__init__(config)
        self._service, self._connections = service, connections
        self._sockets, self._network = sockets, network
        self._ends_at: float | None = None
        # A queue, since a signal may come while the handler of another one runs: setting an event twice at once would
        # wait for its own lock for ever.
        self._signalled: SimpleQueue[None] = SimpleQueue()
        self._has_run = threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until the process gets a signal. Does not wait for threads in which something is still computed."""
        # Started before any signal, since a handler cannot: it may interrupt code that holds the lock of all threads.
        late = threading.Thread(target=self._end_late, name="late", daemon=True)
        late.start()
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self.serve())
            left = asyncio.all_tasks(loop)
            for one in left:
                one.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=0.5))
        finally:
            self._connections.log.flush(everything=True)
            loop.close()
            self._has_run.set()
            self._signalled.put(None)
            late.join()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections; see uvicorn."""
        await self.lifespan.startup()
        listener = Listener(self._sockets, self._connections, self._connection, self._network.tls)
        self.servers = [listener]  # type: ignore[list-item]  # what uvicorn needs of it: close and wait_closed
        self._log_started_message(self._sockets)
        self.started = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts draining, a second one ends it at once."""
        now, is_first = time.monotonic(), self._ends_at is None
        self._ends_at = now + max(self._limit_s - GRACE_S, 0.0) if is_first else now
        self._service.draining = True
        self._signalled.put(None)
        if is_first:
            log.info(
                "stopping: %d running requests may finish within %.0f s", self._service.num_requests, self._limit_s
            )

    def _end_late(self) -> None:
        """Ends the process if it still runs long after its time, for example because a model is being loaded."""
        self._signalled.get()
        if not self._has_run.wait(self._limit_s + LATE_S):
            end_at_once("the server did not stop in time, and is ended")

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; stops the server when all requests finished or the limit is over."""
        if counter % SWEEP_TICKS == 0:
            self._connections.sweep(asyncio.get_running_loop().time())
            self._connections.log.flush()
        if self._ends_at is not None and not self.should_exit:
            late = time.monotonic() >= self._ends_at
            if late or not self._service.num_requests:
                if late:
                    log.warning("%d requests did not finish in time", self._service.num_requests)
                    self._service.fail_all()
                self.should_exit = True
        return await super().on_tick(counter)

    def _connection(self, source: str) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, self._connections, source)

    @property
    def _limit_s(self) -> float:
        return self._service.limits.drain_s


def run_server(
    service: Service,
    metrics: Metrics,
    access: Access,
    network: Network,
    mounts: Mapping[str, ASGIApp] | None = None,
    receivers: Sequence[Callable[[Record], None]] = (),
    home: str | None = None,
) -> None:
    """Serves until the process gets a signal.

    Args:
        service: runs the requests.
        metrics: shown at ``/metrics``.
        access: who may use the server.
        network: where and how it listens.
        mounts: further ASGI apps by path.
        receivers: called with the record of each request that has ended.
        home: see ``create_app``.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def is_exempt(address: str) -> bool:
        found = address_of(address)
        return access.trusts(address) or (found is not None and found.is_loopback)

    sockets = listening(network.host, network.port)
    throttled = ThrottledLog(log)
    throttle_others(throttled)
    connections = Connections(network.limits, metrics, throttled, is_exempt)
    hooks = Hooks(lambda: connections.is_full, receivers, throttled)
    app = create_app(service, metrics, access, mounts, network.root_path, hooks, home)
    config = uvicorn.Config(
        app,
        host=network.host,
        port=network.port,
        # Fixed, so that the server behaves the same whether or not uvloop or httptools are installed.
        loop="asyncio",
        http="h11",
        # Nothing here is served over WebSockets, and uvicorn's class for them knows none of the limits.
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # The forwarded address is read by ``Access``.
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(GRACE_S)),
        lifespan="off",
    )
    config.load()
    config.ssl = network.tls
    # Modules and models stay to the end. Without this, each full garbage collection would examine their million objects
    # while nothing else runs.
    gc.collect()
    gc.freeze()
    try:
        Server(config, service, connections, sockets, network).run()
    finally:
        if not within(CLOSE_S, service.close):
            log.warning("models did not stop computing within %.0f s; the process ends without waiting", CLOSE_S)
