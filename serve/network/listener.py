"""Accepts connections: no more than there may be, a few at a time, and without a storm of errors if files run out."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence

from coconut_ds.errors import ConfigError
from serve.clients.addresses import source_of
from serve.network.connections import Connection, Connections, last_words
from serve.network.descriptors import SpareDescriptors

BACKLOG = 2048
"""Connections that the system holds until they are accepted."""
PER_TURN = 32
"""Largest number of connections accepted in one turn of the event loop, so that requests are answered in between."""
SHARE_PER_TURN = 1 / 32
"""Of the connections that there may be, the share accepted in one turn. A request that came with its connection is
read three or four turns after it; until then, newer connections must not push it out."""
PAUSE_S = 0.5
"""Seconds without accepting after the process could open no further file."""
SHUTDOWN_S = 3.0
"""Seconds that a client may take to agree to the end of a TLS connection."""
NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
BUSY = last_words("503 Service Unavailable", "the server has too many connections", "Retry-After: 5")


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on all addresses of a host; port 0 chooses a free one.

    Raises:
        ConfigError: the host has no address here, or the port is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"--host {host}: has no address ({error.strerror})") from error
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            one = socket.socket(family, kind, protocol)
        except OSError as error:
            failed = error
            continue
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # With port 0, all addresses get the port that was free at the first of them.
            chosen = sockets[0].getsockname()[1] if sockets else port
            one.bind((address[0], chosen, *address[2:]))
            one.listen(BACKLOG)
        except OSError as error:
            one.close()
            failed = error
            # ``localhost`` may have an address of IPv6 although the machine has none.
            if error.errno != errno.EADDRNOTAVAIL:
                break
        else:
            one.setblocking(False)
            sockets.append(one)
    if not sockets or (failed is not None and failed.errno != errno.EADDRNOTAVAIL):
        for one in sockets:
            one.close()
        assert failed is not None
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there ({failed.strerror}); choose another port, or 0 for any "
            "free one"
        )
    return sockets


class Listener:
    """Accepts connections on sockets. To uvicorn it looks like a server of asyncio."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        connections: Connections,
        make: Callable[[str], Connection],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            sockets: they listen, and are closed with the listener.
            connections: the open connections.
            make: makes the connection of a client at an address.
            tls: encrypts connections; None: they are not encrypted.
        """
        self._sockets, self._connections, self._make, self._tls = list(sockets), connections, make, tls
        self._loop = asyncio.get_running_loop()
        self._per_turn = max(1, min(PER_TURN, int(connections.limits.most * SHARE_PER_TURN)))
        self._spare = SpareDescriptors()
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for one in self._sockets:
            self._resume(one)

    def close(self) -> None:
        """Accepts no more connections. Those that are open stay open."""
        for one in self._sockets:
            self._loop.remove_reader(one)
            one.close()
        for paused in self._paused.values():
            paused.cancel()
        self._sockets.clear()
        self._spare.close()

    async def wait_closed(self) -> None:
        """See ``asyncio.Server``; there is nothing to wait for."""

    def _resume(self, listens: socket.socket) -> None:
        self._paused.pop(listens, None)
        self._spare.refill()
        self._loop.add_reader(listens, self._accept, listens)

    def _accept(self, listens: socket.socket) -> None:
        """Accepts some of the connections that have arrived."""
        for _ in range(self._per_turn):
            try:
                accepted, address = listens.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NO_MORE_FILES:
                    raise
                self._pause(listens, error)
                return
            accepted.setblocking(False)
            source = source_of(str(address[0]))
            if self._connections.has_room_for(str(address[0])):
                self._open(accepted, source)
            else:
                self._refuse(accepted, source)

    def _open(self, accepted: socket.socket, source: str) -> None:
        connection = self._make(source)
        connection.handshake = task = self._loop.create_task(self._set_up(connection, accepted))
        self._connections.add(connection)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set_up(self, connection: Connection, accepted: socket.socket) -> None:
        """Hands a socket to its connection, after the handshake if it is encrypted."""
        # ``Connections.sweep`` ends a handshake that takes longer than a head may; asyncio's own limit must not do so
        # earlier.
        handshake_s = 2 * self._connections.limits.head_s
        limits = {} if self._tls is None else {"ssl_handshake_timeout": handshake_s, "ssl_shutdown_timeout": SHUTDOWN_S}
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted, ssl=self._tls, **limits)
        except (OSError, asyncio.CancelledError) as error:
            # The client left, does not speak TLS, or took too long.
            self._connections.remove(connection)
            accepted.close()
            self._connections.log.write(
                "handshake", f"no connection with {connection.source}: {error!r}", logging.DEBUG
            )

    def _refuse(self, accepted: socket.socket, source: str) -> None:
        """Closes a connection for which there is no room, with an answer if it is not encrypted."""
        self._connections.refuse(source)
        with accepted:
            if self._tls is None:
                try:
                    accepted.send(BUSY)
                    # Closing a socket with unread bytes would make the client lose the answer.
                    accepted.shutdown(socket.SHUT_WR)
                    accepted.recv(1 << 16)
                except OSError:
                    # It has closed the connection, or has sent nothing yet.
                    return

    def _pause(self, listens: socket.socket, error: OSError) -> None:
        """Accepts nothing for a moment, since the process can open no further file, and closes what waits first."""
        self._connections.log.write("files", f"no connection can be accepted: {error.strerror}", logging.ERROR)
        if self._spare.give_up():
            try:
                accepted, _ = listens.accept()
            except OSError:
                # Another thread has opened a file in between.
                pass
            else:
                accepted.close()
        self._loop.remove_reader(listens)
        self._paused[listens] = self._loop.call_later(PAUSE_S, self._resume, listens)
