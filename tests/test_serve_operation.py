"""What those who run a server see and do: logs, traces, the state of the process, signals; and slow clients."""

import asyncio
import json
import logging
import random
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn
from making_guards import Exchange, Guarded, echo
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from random_sigterm import holds, trial
from serving import save_checkpoint, serving
from slow_connections import BOUNDS, KINDS, attack
from waiting import wait_until

from serve.api.records import Record, Records
from serve.api.safe_headers import SafeHeaders
from serve.engine.jobs import Times
from serve.limits import ConnectionLimits, Limits
from serve.monitoring.metrics import Metrics
from serve.monitoring.throttled import PERIOD_S, ThrottledLog
from serve.network.connections import Connections
from serve.network.spans import Spans

KEYS = '{"name": "alice", "key": "sesame"}\n{"name": "bob", "key": "open", "requests_per_minute": 2}\n'
PROMPT = "a question that no log may contain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("operation") / "coconut")


@pytest.fixture(scope="module")
def server(folder):
    """With two keys, and a log of JSON lines."""
    keys = folder.parent / "keys"
    keys.write_text(KEYS)
    options = ("--api-key-file", str(keys), "--log-json", "--load", "--max-connections", "100", "--head-s", "1")
    with serving(folder, options=(*options, "--idle-s", "1")) as running:
        running.key = "sesame"
        yield running


def lines_of(server) -> list[dict]:
    return [json.loads(line) for line in server.lines if line.startswith("{")]


def line_of(server, request_id: str) -> dict:
    """The line of the access log about a request, which is written when the request has ended."""

    def found() -> list[dict]:
        return [one for one in lines_of(server) if one.get("id") == request_id]

    wait_until(found)
    return found()[0]


@pytest.mark.slow
def test_each_request_is_a_line_with_its_client_and_its_tokens(server):
    """But without its prompt, its text and its key."""
    body = {"model": "coconut", "prompt": PROMPT, "max_tokens": 3, "min_tokens": 3, "n": 2}
    with server.client() as http:
        whole = http.post("/v1/completions", json=body)
        assert whole.status_code == 200
        streamed = http.post("/v1/completions", json={**body, "stream": True})
        traced = http.post("/v1/thoughts", json={"model": "coconut", "question": PROMPT, "max_tokens": 3})
        live = http.get("/live?secret=1", headers={"Authorization": "Bearer wrong"})
        wrong = http.get("/v1/models", headers={"Authorization": "Bearer wrong-key"})
        bob = [
            http.post("/v1/completions", json=body, headers={"Authorization": "Bearer open"}).status_code
            for _ in range(3)
        ]
    assert bob == [200, 200, 429]
    found = [line_of(server, one.headers["x-request-id"]) for one in (whole, streamed, traced, live, wrong)]
    assert [(one["client"], one["method"], one["path"], one["status"]) for one in found] == [
        ("key:alice", "POST", "/v1/completions", 200),
        ("key:alice", "POST", "/v1/completions", 200),
        ("key:alice", "POST", "/v1/thoughts", 200),
        ("address:127.0.0.1", "GET", "/live", 200),
        (None, "GET", "/v1/models", 401),
    ]
    assert {one["address"] for one in found} == {"127.0.0.1"}
    assert [(one["model"], one["tokens"], one["thoughts"]) for one in found[:2]] == [("coconut", 6, 4)] * 2
    assert [found[2]["model"], found[2]["thoughts"], found[3]["model"]] == ["coconut", 2, None]
    assert all(one["complete"] and 0 < one["seconds"] < 60 for one in found)
    assert set(found[0]) >= {"time", "level", "logger"}
    for secret in (PROMPT, "sesame", "wrong-key", "secret"):
        assert secret not in server.log


@pytest.mark.slow
def test_slow_connections_take_nothing_away_from_others(server):
    """A small ``python tests/slow_connections.py``, without what depends on how busy the machine is: times of answers,
    and bodies that come byte by byte."""
    figures = attack(server, 300, 1, 20, [kind for kind in KINDS if kind != "a body byte by byte"])
    assert figures["health_asked"] > 10
    for name in BOUNDS.keys() - {"health_p99_ms", "health_unanswered"}:
        assert figures[name] <= BOUNDS[name], figures
    # On a busy machine, a burst of connections may come before the server reads a request, and take its place.
    assert figures["health_unanswered"] <= 0.02 * figures["health_asked"] + 1, figures
    assert figures["longest_open_s"] <= 15
    assert server.metric("connections_ended_total", reason="no room") > 100
    assert server.metric("connections_open") <= 2


@pytest.mark.slow
def test_sigterm_at_random_moments(folder):
    """A small ``python tests/random_sigterm.py``."""
    draws = random.Random(0)
    for while_starting in (True, False):
        one = trial(folder, draws, while_starting, real=False)
        assert holds(one), one


# --- in process


@pytest.mark.parametrize("flushes", [True, False])
def test_events_are_counted_and_the_log_gets_a_line_in_a_while(caplog, flushes):
    """Also where the log is never flushed, as when another program runs the app."""
    now = [0.0]
    log = ThrottledLog(logging.getLogger("serve"), lambda: now[0])
    for number in range(1000):
        now[0] = number * PERIOD_S / 100
        log.write("a", f"event {number}")
        if flushes and number % 10 == 0:
            log.flush()
    log.write("b", "another")
    log.flush(everything=True)
    told = [one.message for one in caplog.records]
    assert told[0] == "event 0"
    assert 10 <= len(told) <= 13
    counts = [int(one.partition("(")[2].split()[0]) for one in told if "of this kind" in one]
    assert sum(counts) + len([one for one in told if "(" not in one and one != "another"]) == 1000


def test_a_request_that_is_cut_off_is_recorded_as_such():
    records: list[Record] = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ConnectionError

    whole, cut = Records(echo, [records.append]), Records(app, [records.append])
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
    exchange = Exchange()
    asyncio.run(whole(dict(scope), exchange.receive, exchange.send))
    with pytest.raises(ConnectionError):
        asyncio.run(cut(dict(scope), exchange.receive, exchange.send))
    assert [(one.status, one.is_whole, one.client) for one in records] == [(200, True, None), (200, False, None)]


def test_a_trace_has_the_times_of_each_part():
    """And belongs to the trace that the client names."""
    kept = InMemorySpanExporter()
    spans = Spans(SimpleSpanProcessor(kept))
    parent = "0af7651916cd43dd8448eb211c80319c"
    record = Record("POST", "/v1/completions", [(b"traceparent", f"00-{parent}-b7ad6b7169203331-01".encode())], 10.0)
    record.ended, record.status, record.model, record.client = 20.0, 200, "m", "key:alice"
    record.times = [
        Times(submitted=11, started=12, encoded=14, thought=15, first_token=16, last_token=18, done=18),
        Times(submitted=11, started=11.5, encoded=13, first_token=13, last_token=15, done=15),
    ]
    spans.record(record)
    failed = Record("GET", "/x", (), 1.0)
    failed.ended, failed.status = 2.0, 500
    spans.record(failed)
    made = kept.get_finished_spans()
    root = next(one for one in made if one.name == "POST /v1/completions")
    assert format(root.context.trace_id, "032x") == parent
    assert (root.attributes["coconut.client"], root.attributes["coconut.model"]) == ("key:alice", "m")

    def seconds(span, since=root.start_time - 10 * 10**9) -> tuple[float, float]:
        return round((span.start_time - since) / 1e9, 3), round((span.end_time - since) / 1e9, 3)

    assert seconds(root) == (10, 20)
    parts = [(one.name, one.attributes["index"], *seconds(one)) for one in made if one.parent == root.context]
    assert parts == [
        ("queue", 0, 11, 12),
        ("prefill", 0, 12, 14),
        ("thoughts", 0, 14, 15),
        ("text", 0, 15, 18),
        ("queue", 1, 11, 11.5),
        ("prefill", 1, 11.5, 13),
        ("text", 1, 13, 15),
    ]
    assert made[-1].status.status_code is StatusCode.ERROR
    assert root.resource.attributes["service.name"] == "coconut-ds"
    spans.close()


def test_pages_may_not_be_framed_by_others_and_load_nothing_from_elsewhere():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Referrer-Policy", b"own")]})
        await send({"type": "http.response.body"})

    for path, policy in (("/docs", "default-src 'none'"), ("/app/x", "default-src 'self'"), ("/apple", "'none'")):
        exchange = Exchange()
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        asyncio.run(SafeHeaders(app, ["/app"])(scope, exchange.receive, exchange.send))
        (found,) = exchange.header("content-security-policy")
        assert policy in found
        assert "frame-ancestors 'self'" in found
        assert exchange.header("x-content-type-options") == ["nosniff"]
        assert exchange.header("x-frame-options") == ["SAMEORIGIN"]
        assert exchange.header("referrer-policy") == ["own"]


def test_the_state_of_a_server_is_told_while_it_stops_or_is_full():
    made = Guarded()
    made._guards._is_full = lambda: True
    for path, status in (("/live", 200), ("/ready", 200), ("/health", 200), ("/metrics", 200), ("/v1/models", 503)):
        assert made.ask(path).status == status


def test_a_body_that_drips_is_not_waited_for(monkeypatch):
    """One that arrives slowly but steadily is."""
    monkeypatch.setattr("serve.api.guards.SLOW_BODY_S", 0.2)
    monkeypatch.setattr("serve.api.guards.SLOW_BODY_BYTES", 40)
    drips = Guarded().ask(exchange=Exchange([b"x"] * 20, pause_s=0.05))
    assert (drips.status, drips.num_received <= 6) == (408, True)
    steady = Guarded(body_bytes=10_000).ask(exchange=Exchange([b"x" * 40] * 20, pause_s=0.05))
    assert steady.status == 200


def test_the_thread_that_ends_a_late_server_ends_with_the_server(monkeypatch):
    """A program that goes on after the server is not ended later."""
    from serve.network import server

    ended: list[str] = []
    monkeypatch.setattr(server, "end_at_once", ended.append)
    monkeypatch.setattr(server, "LATE_S", 0.3)
    monkeypatch.setattr(server.Server, "serve", lambda self: asyncio.sleep(0.6 if is_late else 0))
    service = SimpleNamespace(limits=Limits(drain_s=0.05), num_requests=0)
    for is_late in (False, True):
        connections = Connections(ConnectionLimits(), Metrics(), ThrottledLog(logging.getLogger("serve")), bool)
        one = server.Server(uvicorn.Config(echo), service, connections, [], None)
        one.handle_exit(signal.SIGTERM, None)
        one.run()
        left = [thread for thread in threading.enumerate() if thread.name == "late"]
        for thread in left:
            # Otherwise it would end this process once ``end_at_once`` is no longer replaced.
            thread.join(5)
        assert not left
        assert bool(ended) is is_late


def test_a_signal_may_come_at_any_line_of_the_handler_of_another():
    """As when a service manager sends two at once. The handler of the second runs within that of the first."""
    from serve.network import server

    service = SimpleNamespace(limits=Limits(drain_s=5), num_requests=0)
    connections = Connections(ConnectionLimits(), Metrics(), ThrottledLog(logging.getLogger("serve")), bool)
    one = server.Server(uvicorn.Config(echo), service, connections, [], None)
    lines: list[int] = []

    def again(frame, event, argument):
        sys.settrace(None)
        lines.append(frame.f_lineno)
        one.handle_exit(signal.SIGTERM, None)
        sys.settrace(again)
        return again

    def first() -> None:
        sys.settrace(again)
        one.handle_exit(signal.SIGTERM, None)
        sys.settrace(None)

    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len(lines) > 5


def test_signals_before_the_server_serves_end_the_process(monkeypatch):
    from serve.network import stopping

    ended: list[int] = []
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGTERM)
    with stopping.stopping_at_once():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert ended == [0, 0]
    assert signal.getsignal(signal.SIGTERM) is before
    assert not stopping.within(0.05, lambda: time.sleep(0.3))
    monkeypatch.setattr(stopping.logging, "shutdown", lambda: None)
    stopping.leave_if_busy(3)
    assert ended[-1] == 3
