"""Connections of the server: how many there are, how long each may keep the server waiting, and which has to go.

A connection is either *working* (the server computes or sends an answer) or *waiting* for its client: for a request's
head, for the rest of its body, for the next request, or for the client to read what was sent. Waiting has time limits.
If there are as many connections as there may be, the one that has waited longest makes room for a new one, among those
of the address with most of them. So clients that open connections and send nothing, or a byte at a time, cannot keep
others out.
"""

import asyncio
import enum
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from serve.clients.addresses import source_of
from serve.limits import ConnectionLimits
from serve.monitoring.metrics import Metrics
from serve.monitoring.throttled import ThrottledLog

REST_S = 2.0
"""Seconds that the rest of a body may still arrive after the answer, so that the client reads the answer."""
IDLE, SILENT, SLOW_HEAD = "idle", "silent", "slow head"
"""Reasons why connections are ended: no further request, not a single byte, a head that does not end."""


def last_words(status: str, text: str, *headers: str) -> bytes:
    """A whole response, after which the connection is closed."""
    lines = ["HTTP/1.1 " + status, "Content-Type: text/plain; charset=utf-8", *headers, "Connection: close"]
    return "\r\n".join([*lines, f"Content-Length: {len(text)}", "", text]).encode("ascii")


TIMED_OUT = last_words("408 Request Timeout", "the request's head did not arrive in time")


class Phase(enum.Enum):
    """What a connection does."""

    HEAD = enum.auto()
    """It waits for a request's head, or for the end of the TLS handshake."""
    BODY = enum.auto()
    """It waits for a request's body. The guards limit the time."""
    WORK = enum.auto()
    """It has a whole request, and the answer is being made or sent."""
    UNREAD = enum.auto()
    """It waits for the client to read."""
    REST = enum.auto()
    """The request was answered before its body had arrived."""
    IDLE = enum.auto()
    """It waits for another request."""


class Connections:
    """All connections of a server."""

    def __init__(
        self, limits: ConnectionLimits, metrics: Metrics, log: ThrottledLog, is_exempt: Callable[[str], bool]
    ) -> None:
        """``is_exempt``: whether an address may have as many connections as there may be in total."""
        self.limits, self.log = limits, log
        self._is_exempt = is_exempt
        self._open: dict[str, int] = {}
        """Number of connections by address."""
        self._waiting: dict[str, OrderedDict[Connection, None]] = {}
        """Waiting connections by address, those that have waited longest first."""
        self._all: set[Connection] = set()
        self._ending: set[Connection] = set()
        """Those that were ended but may still send what they have to."""
        self._refused, self._ended = metrics.connections_refused, metrics.connections_ended
        metrics.watch_connections(lambda: (len(self._all) - self.num_working, self.num_working))

    @property
    def num_working(self) -> int:
        """Number of connections that do not wait for their client."""
        return len(self._all) - sum(map(len, self._waiting.values()))

    @property
    def is_full(self) -> bool:
        """Whether the server takes no other requests, since it is answering as many as it can."""
        return self.num_working > self.limits.most_working

    def has_room_for(self, address: str) -> bool:
        """Whether a new connection of an address may be opened; one that waits is ended if it has to make room."""
        source = source_of(address)
        if not self._is_exempt(address) and self._open.get(source, 0) >= self.limits.most_of_an_address:
            return self._end_longest(source)
        if len(self._all) < self.limits.most:
            return True
        return bool(self._waiting) and self._end_longest(max(self._waiting, key=lambda one: len(self._waiting[one])))

    def add(self, connection: "Connection") -> None:
        """Counts a new connection."""
        self._all.add(connection)
        self._open[connection.source] = self._open.get(connection.source, 0) + 1
        self.move(connection)

    def remove(self, connection: "Connection") -> None:
        """No longer counts a connection; may be called several times."""
        if connection in self._all:
            self._all.remove(connection)
            self._ending.discard(connection)
            self._stop_waiting(connection)
            self._open[connection.source] -= 1
            if not self._open[connection.source]:
                del self._open[connection.source]

    def move(self, connection: "Connection") -> None:
        """Notes that a connection is in another phase, from now on."""
        if connection in self._all:
            self._stop_waiting(connection)
            if connection.phase is not Phase.WORK:
                self._waiting.setdefault(connection.source, OrderedDict())[connection] = None

    def refuse(self, source: str) -> None:
        """Reports that a connection was not accepted."""
        self._refused.inc()
        self.log.write("refused", f"refused a connection from {source}: {len(self._all)} are open and all are working")

    def end(self, connection: "Connection", reason: str) -> None:
        """Ends a connection whose client kept the server waiting, and reports it.

        For some reasons a connection may still send what it has to. It is open until it has, or until the next call.
        """
        if connection in self._ending:
            self.remove(connection)
            connection.end(reason)
            return
        self._ended.labels(reason=reason).inc()
        # Browsers open connections in advance, so one that is not used is nothing to worry about.
        level = logging.DEBUG if reason in (IDLE, SILENT) else logging.WARNING
        told = f"ended a connection of {connection.source} ({reason}); {len(self._all)} are open"
        self.log.write(f"ended {reason}", told, level)
        if reason in (IDLE, SLOW_HEAD):
            self._ending.add(connection)
        else:
            self.remove(connection)
        connection.end(reason)

    def sweep(self, now: float) -> None:
        """Ends connections that have waited too long; called every half second."""
        for one in list(self._all):
            reason = one.overdue(now)
            if reason is not None:
                self.end(one, reason)

    def _end_longest(self, source: str) -> bool:
        """Ends the connection of an address that has waited longest, and says whether there was one."""
        found = next(iter(self._waiting.get(source, ())), None)
        if found is not None:
            self.end(found, "no room")
        return found is not None

    def _stop_waiting(self, connection: "Connection") -> None:
        waiting = self._waiting.get(connection.source)
        if waiting is not None and connection in waiting:
            del waiting[connection]
            if not waiting:
                del self._waiting[connection.source]


class Connection(H11Protocol):
    """uvicorn's connection, except that it has time limits and can be ended to make room."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connections: Connections,
        source: str,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.source = source
        self.phase = Phase.HEAD
        self._connections = connections
        self._since = self.loop.time()
        """When the phase began."""
        self._num_unread, self._unread_since = 0, self._since
        """Bytes that the client had not read when they were last counted, and since when they have not become fewer."""

    # Called by the event loop and by uvicorn's class

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.phase is Phase.IDLE:
            self._enter(Phase.HEAD)
        super().data_received(data)

    def handle_events(self) -> None:
        """Handles what has arrived; see uvicorn."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            if self.phase is not Phase.UNREAD:
                self._enter(Phase.BODY if self.cycle.more_body else Phase.WORK)
        elif self.phase is Phase.REST and self.conn.their_state is not h11.SEND_BODY:
            self._enter(Phase.IDLE)

    def on_response_complete(self) -> None:
        """See uvicorn."""
        self._enter(Phase.REST if self.conn.their_state is h11.SEND_BODY else Phase.IDLE)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        if self.phase is Phase.WORK:
            self._enter(Phase.UNREAD)

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        if self.phase is Phase.UNREAD:
            self._enter(Phase.WORK)

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's timer of idle connections ends none: ``Connections.sweep`` does."""

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing is upgraded here; the request is answered without."""

    # Called by ``Connections``

    def overdue(self, now: float) -> str | None:
        """Why the connection must be ended; None if it need not be."""
        waited = now - self._since
        limits = self._connections.limits
        if self.phase is Phase.HEAD and waited > limits.head_s:
            return SLOW_HEAD if self.conn.trailing_data[0] else SILENT
        if self.phase is Phase.REST and waited > REST_S:
            return "slow body"
        if self.transport is None:
            return None
        if self.phase is Phase.IDLE and waited > limits.idle_s and not self.transport.is_closing():
            return IDLE
        num_unread = self.transport.get_write_buffer_size()
        # While the server may still send more, a larger number need not mean that the client does not read.
        is_growing = self.phase is Phase.WORK and not self.transport.is_closing()
        if not num_unread or num_unread < self._num_unread or is_growing:
            self._unread_since = now
        self._num_unread = num_unread
        return "unread" if now - self._unread_since > limits.unread_s else None

    def end(self, reason: str) -> None:
        """Closes the connection, at once if the reason is not ``IDLE`` or ``SLOW_HEAD`` or if it is closing already.

        A client that has sent a part of a head is told why.
        """
        if self.transport is None:
            # The handshake is not over; the listener closes it.
            self.handshake.cancel()
            return
        if self.transport.is_closing() or reason not in (IDLE, SLOW_HEAD):
            self.transport.abort()
            return
        if reason == SLOW_HEAD:
            self.transport.write(TIMED_OUT)
        self.transport.close()

    handshake: "asyncio.Task[Any]"
    """The task that sets the connection up."""

    def _enter(self, phase: Phase) -> None:
        if phase is not self.phase:
            self.phase, self._since = phase, self.loop.time()
            self._connections.move(self)
