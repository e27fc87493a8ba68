"""Connections: time limits, who makes room for whom, and encryption; in process."""

import asyncio
import socket
import ssl
import time

import pytest
from making_connections import ASK, LOG, Running, serve
from serving import ROOT

from coconut_ds.errors import ConfigError
from serve.limits import ConnectionLimits
from serve.monitoring.metrics import Metrics
from serve.monitoring.throttled import ThrottledLog
from serve.network import connections as connections_module
from serve.network.connections import Connections, Phase
from serve.network.tls import tls_of

TLS = ROOT / "tests" / "fixtures" / "tls"
HEAD = b"POST /read HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("sends", "drips", "least_s", "says"),
    [
        (b"", b"", 0.4, b""),
        (b"GET / HT", b"", 0.4, b"HTTP/1.1 408 "),
        (HEAD + b"X: ", b"x", 0.4, b"HTTP/1.1 408 "),
        (ASK % b"x" + b"GET", b"x", 0.4, b"HTTP/1.1 200 "),
        (ASK % b"x", b"", 0.8, b"HTTP/1.1 200 "),
        (HEAD.replace(b"read", b"early") + b"Content-Length: 9\r\n\r\n", b"x", 0.3, b"HTTP/1.1 200 "),
    ],
    ids=["silent", "half a head", "dripping head", "half a second head", "idle", "dripping rest of a body"],
)
def test_a_client_that_keeps_the_server_waiting_is_not_waited_for(monkeypatch, sends, drips, least_s, says):
    monkeypatch.setattr(connections_module, "REST_S", 0.3)

    async def test(running: Running) -> None:
        began = time.monotonic()
        reader, writer = await running.open(sends)
        got = b""
        while not reader.at_eof():
            writer.write(drips)
            try:
                async with asyncio.timeout(0.05):
                    got += await reader.read(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert got.startswith(says)
        assert bool(got) == bool(says)
        assert least_s <= time.monotonic() - began < least_s + 10
        assert not running.connections._all

    serve(test, head_s=0.4, idle_s=0.8)


def test_a_client_that_does_not_read_is_not_waited_for():
    """Neither the connection nor the answer that it does not read is kept."""

    async def test(running: Running) -> None:
        _, writer = await running.open(ASK % b"large")
        writer.transport.pause_reading()
        while not running.count("connections_ended_total", reason="unread"):
            await asyncio.sleep(0.02)
        assert not running.connections._all
        writer.close()

    serve(test, unread_s=0.5)


def test_a_client_that_does_not_read_why_its_head_was_refused_keeps_no_file_open():
    """It is reported once, and its socket is closed although there are bytes that it has not read."""

    async def test(running: Running) -> None:
        _, writer = await running.open(ASK % b"large")
        writer.transport.pause_reading()
        await asyncio.sleep(0.1)
        writer.write(b"GET")
        while running.connections._all:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert not running.state.connections
        assert running.count("connections_ended_total", reason="slow head") == 1
        assert running.count("connections_ended_total", reason="unread") == 0

    serve(test, head_s=0.4)


def test_a_client_that_reads_slowly_gets_everything():
    async def test(running: Running) -> None:
        reader, writer = await running.open(ASK % b"large", limit=1 << 20)
        num = 0
        while num < 64 << 20:
            part = await reader.read(2 << 20)
            assert part, f"the server closed the connection after {num} bytes"
            num += len(part)
            await asyncio.sleep(0.02)
        writer.close()

    serve(test, unread_s=0.6)


def test_the_connection_that_waited_longest_makes_room(monkeypatch):
    """Those at work stay. If all work, a new one is refused, with an answer; then there is room again."""

    async def test(running: Running) -> None:
        waiting = [await running.open(sends) for sends in (b"", b"GET", HEAD + b"Content-Length: 9\r\n\r\nx", b"")]
        working = [await running.open(ASK % b"wait") for _ in range(4)]
        while running.connections.num_working < 4:
            await asyncio.sleep(0.01)
        more = []
        for reader, _ in waiting:
            assert len(running.connections._all) == 8
            more.append(await running.open(ASK % b"wait"))
            assert await reader.read() == b""
            while running.connections.num_working < 4 + len(more):
                await asyncio.sleep(0.01)
        assert running.connections.is_full
        reader, _ = await running.open(ASK % b"x")
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        assert running.count("connections_refused_total") == 1
        assert running.count("connections_open", state="working") == 8
        running.go.set()
        for reader, _ in working + more:
            assert await reader.readuntil(b"\r\n\r\nxx")
        assert await running.ask()

    serve(test)


def test_an_address_does_not_take_the_room_of_others():
    async def test(running: Running) -> None:
        working = [await running.open(ASK % b"wait") for _ in range(2)]
        reader, _ = await running.open(ASK % b"x")
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        running.go.set()
        for reader, _ in working:
            assert await reader.readuntil(b"\r\n\r\nxx")
        assert await running.ask()

    serve(test, is_exempt=False)


def test_a_burst_of_connections_does_not_end_a_request_that_has_arrived():
    """The server finds all of them at the same time, the request first; there is room for a part of them."""

    async def test(running: Running) -> None:
        opened = [socket.create_connection(running.address) for _ in range(3 * running.connections.limits.most)]
        opened[0].sendall(ASK % b"x")
        opened[0].setblocking(False)
        answer = await asyncio.get_running_loop().sock_recv(opened[0], 4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
        for one in opened:
            one.close()

    serve(test)


class Noted:
    """A connection that only notes that it was ended."""

    def __init__(self, source: str, number: int, ended: list[int], phase: Phase = Phase.HEAD) -> None:
        self.source, self.phase = source, phase
        self.end = lambda reason: ended.append(number)


def test_of_the_address_with_most_connections_one_makes_room():
    connections, ended = Connections(ConnectionLimits(6), Metrics(), ThrottledLog(LOG), lambda address: True), []
    made = [Noted(source, number, ended) for number, source in enumerate("baabba")]
    for one in made:
        connections.add(one)
    connections.add(Noted("a", 6, ended))
    assert connections.has_room_for("c")
    assert ended == [1]
    for one in (made[2], made[5]):
        one.phase = Phase.WORK
        connections.move(one)
    assert connections.has_room_for("c")
    assert ended == [1, 0]


def test_connections_may_be_encrypted():
    """A client that speaks no TLS, or says nothing, takes nothing away from the others."""
    tls = tls_of(TLS / "cert.pem", TLS / "key.pem")
    client = ssl.create_default_context(cafile=str(TLS / "cert.pem"))

    async def test(running: Running) -> None:
        silent, _ = await running.open()
        plain, _ = await running.open(ASK % b"x")
        assert b"HTTP" not in await plain.read()
        assert await running.ask(ssl=client, server_hostname="localhost")
        reader, writer = await running.open(b"GET", ssl=client, server_hostname="localhost")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()
        assert await silent.read() == b""
        assert running.count("connections_ended_total", reason="silent") == 1

    serve(test, tls=tls, head_s=2.0)


@pytest.mark.parametrize(
    ("certificate", "key", "says"),
    [
        ("cert.pem", None, "--tls-key is missing"),
        (None, "key.pem", "--tls-cert is missing"),
        ("cert.pem", "other_key.pem", "cannot be used"),
        ("cert.pem", "none.pem", "cannot be read"),
        ("cert.pem", "../gsm_valid.txt", "in PEM format"),
        ("key.pem", "key.pem", "cannot be used"),
        ("cert.pem", "encrypted_key.pem", "is encrypted"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused(certificate, key, says):
    with pytest.raises(ConfigError, match=says):
        tls_of(certificate and TLS / certificate, key and TLS / key)
    assert tls_of(None, None) is None
