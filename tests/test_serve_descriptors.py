"""Open files and addresses: what happens when they run out or cannot be used; in process."""

import asyncio
import errno
import resource
import socket
import time

import pytest
from making_connections import ASK, Running, serve

from coconut_ds.errors import ConfigError
from serve.network.descriptors import FEWEST, MOST_CONNECTIONS, max_connections, raise_limit
from serve.network.listener import PAUSE_S, listening


def test_running_out_of_files_is_reported_once_and_does_not_take_the_processor(monkeypatch, caplog):
    """A listener without files accepts nothing for a moment, and goes on when there are some."""
    accepts: list[float] = []
    lacks = True

    async def test(running: Running) -> None:
        nonlocal lacks
        listens = running.sockets[0]
        real = socket.socket.accept

        def accept(one: socket.socket):
            accepts.append(time.monotonic())
            if lacks:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(one)

        monkeypatch.setattr(socket.socket, "accept", accept)
        reader, _ = await running.open(ASK % b"x")
        await asyncio.sleep(2.5 * PAUSE_S)
        assert 2 <= len(accepts) <= 8
        lacks = False
        assert (await reader.read(12)).startswith(b"HTTP/1.1 200")
        assert listens.fileno() > 0

    serve(test)
    assert len([one for one in caplog.records if "no connection can be accepted" in one.message]) == 1


def test_connections_leave_files_for_others():
    for descriptors, most in ((FEWEST, FEWEST // 2), (1024, 768), (65_536, MOST_CONNECTIONS)):
        assert max_connections(descriptors, None) == most
    assert max_connections(1024, 700) == 700
    with pytest.raises(ConfigError, match="--max-connections 769: expected 1 to 768"):
        max_connections(1024, 769)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[0]), before[1]))
        assert raise_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_address_that_cannot_be_listened_on():
    (taken,) = listening("127.0.0.1", 0)
    with taken, pytest.raises(ConfigError, match=r"cannot listen there \(Address already in use\)"):
        listening("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="has no address"):
        listening("no.such.host.invalid", 0)
    both = listening("localhost", 0)
    assert len({one.getsockname()[1] for one in both}) == 1
    for one in both:
        one.close()
