"""The guards around the server's app, in process: request id, key, bounds of the body, work count, closing down."""

import asyncio
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from making_guards import BODY_BYTES, KEY, Exchange, Guarded, basic, bearer, echo

# --- request id


@settings(deadline=None, max_examples=50)
@given(given_id=st.one_of(st.from_regex(r"[A-Za-z0-9_-]{1,70}", fullmatch=True).map(str.encode), st.binary()))
@example(given_id=b"a" * 64)
@example(given_id=b"a" * 65)
@example(given_id=b"a.b")
@example(given_id=b"a b")
@example(given_id=b"a\n")
@example(given_id=b"")
def test_a_clients_request_id_comes_back_if_it_is_a_short_plain_word(given_id):
    """Otherwise it is replaced: neither a log nor a header may hold what a client makes up."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["state"]["request_id"])
        await echo(scope, receive, send)

    (found,) = Guarded(app).ask(headers={b"x-request-id": given_id}).header("x-request-id")
    allowed = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    if 1 <= len(given_id) <= 64 and set(given_id) <= allowed:
        assert found.encode() == given_id
    else:
        assert re.fullmatch("[0-9a-f]{24}", found)
    assert seen == [found]


def test_requests_without_an_id_get_different_ones_and_refusals_have_one_too():
    guarded = Guarded(key=KEY)
    ids = {guarded.ask(headers=bearer(KEY)).header("x-request-id")[0] for _ in range(20)}
    assert len(ids) == 20
    assert guarded.ask(headers={b"x-request-id": b"mine"}).header("x-request-id") == ["mine"]


# --- key


@pytest.mark.parametrize(
    ("headers", "opens"),
    [
        (bearer(KEY), True),
        ({b"authorization": b"bearer   sesame "}, True),
        (basic(KEY), True),
        (basic(KEY, user=""), True),
        ({}, False),
        (bearer("sesam"), False),
        (bearer("sesame2"), False),
        (bearer("Sesame"), False),
        (bearer(""), False),
        (basic("open:sesame"), False),
        ({b"authorization": b"sesame"}, False),
        ({b"authorization": b"Token sesame"}, False),
        ({b"authorization": b"Basic sesame"}, False),
        ({b"authorization": b"Basic !"}, False),
        ({b"authorization": b"Basic !" + basic(KEY)[b"authorization"].removeprefix(b"Basic ")}, False),
        ({b"authorization": b"Bearer \xff\xfe"}, False),
        ({b"x-authorization": b"Bearer sesame"}, False),
    ],
)
def test_the_key_opens_and_nothing_else_does(headers, opens):
    guarded = Guarded(key=KEY)
    answer = guarded.ask(headers=headers, exchange=Exchange([b"hello"]))
    assert (answer.status, answer.body == b"hello") == ((200, True) if opens else (401, False))
    assert guarded.answers() == {str(answer.status): 1.0}
    if not opens:
        assert answer.num_received == 0, "the body of a stranger was read"
        assert len(answer.header("www-authenticate")) == 1
    assert guarded.ask("/health").status == 200
    for path in ("/", "/docs", "/metrics", "/v1/models", "/health/x", "/healthy"):
        assert guarded.ask(path, headers=headers).status == (200 if opens else 401), path
    assert Guarded(key=None).ask(headers=headers).status == 200


@settings(deadline=None, max_examples=50)
@given(key=st.text(min_size=1, max_size=12), other=st.text(max_size=12))
def test_of_two_keys_only_the_same_one_opens(key, other):
    """Also as a browser's password, which may hold any character."""
    key, other = key.strip() or "k", other.strip()
    guarded = Guarded(key=key)
    assert guarded.ask(headers=basic(key)).status == 200
    assert guarded.ask(headers=basic(other)).status == (200 if other == key else 401)


@pytest.mark.parametrize(("headers", "opens"), [({}, False), (bearer("x"), False), (basic(KEY), True)])
def test_websockets_need_the_key_too(headers, opens):
    reached = []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    exchange = Guarded(app, key=KEY).ask(headers=headers, kind="websocket")
    assert reached == (["websocket"] if opens else [])
    assert exchange.sent == ([] if opens else [{"type": "websocket.close", "code": 1008}])


def test_the_life_of_the_app_is_not_a_request():
    reached = []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    guarded = Guarded(app, key=KEY)
    guarded.ask(kind="lifespan")
    assert reached == ["lifespan"]
    assert guarded.answers() == {}


# --- the body


@settings(deadline=None, max_examples=50)
@given(
    # Sizes are drawn first, because binary strings are mostly short.
    body=st.integers(0, BODY_BYTES + 4).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    cuts=st.lists(st.integers(0, BODY_BYTES + 4), max_size=5),
    declared=st.sampled_from(["right", "absent", "too small", "no number"]),
)
@example(body=b"x" * BODY_BYTES, cuts=[], declared="right")
@example(body=b"x" * BODY_BYTES, cuts=[7, 14], declared="absent")
@example(body=b"x" * (BODY_BYTES + 1), cuts=[], declared="absent")
@example(body=b"x" * (BODY_BYTES + 1), cuts=[7, 14], declared="too small")
def test_a_body_is_read_whole_up_to_the_bound_however_it_is_cut(body, cuts, declared):
    """Chunked or declared, and whatever the header claims: what counts is what arrives."""
    places = sorted(min(cut, len(body)) for cut in cuts)
    chunks = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
    lengths = {"right": str(len(body)), "absent": None, "too small": "1", "no number": "many"}
    length = lengths[declared]
    headers = {} if length is None else {b"content-length": length.encode()}
    guarded, exchange = Guarded(), Exchange(chunks)
    guarded.ask(headers=headers, exchange=exchange)
    if len(body) <= BODY_BYTES:
        assert (exchange.status, exchange.body) == (200, body)
        # The app got it as one message, which says that it is complete.
        assert [message["body"] for message in exchange.sent[1:]] == [body, b""]
        assert exchange.num_received == len(chunks)
    else:
        assert exchange.status == 413
        read = b"".join(chunks[: exchange.num_received])
        before = b"".join(chunks[: max(exchange.num_received - 1, 0)])
        assert len(before) <= BODY_BYTES, "more was read than is needed to refuse it"
        assert declared == "right" or len(read) > BODY_BYTES


def test_a_body_that_is_declared_too_large_is_refused_unread():
    exchange = Guarded().ask(headers={b"content-length": b"21"}, exchange=Exchange([b"x" * 21]))
    assert (exchange.status, exchange.num_received) == (413, 0)


def test_messages_without_body_and_end_mark_are_read():
    """ASGI lets servers omit both: a message without ``body`` is empty, and one without ``more_body`` is the last."""
    messages = [{"type": "http.request", "more_body": True}, {"type": "http.request", "body": b"x"}]
    exchange = Exchange()

    async def receive():
        return messages.pop(0)

    exchange.receive = receive
    assert Guarded().ask(exchange=exchange).body == b"x"
    assert messages == []


def test_a_body_that_does_not_arrive_in_time_is_refused():
    slow = Exchange([b"x"] * 10, pause_s=0.05)
    guarded = Guarded(body_s=0.12)
    assert guarded.ask(exchange=slow).status == 408
    assert slow.num_received < 10
    assert guarded.ask(exchange=Exchange([b"x", b"y"], pause_s=0.01)).body == b"xy"


def test_a_client_that_leaves_midway_is_told_to_the_app():
    """It sees an unfinished body and then the disconnect, so that it does not take half a request for a whole one."""
    seen = []

    async def app(scope, receive, send):
        seen.extend([await receive(), await receive()])

    Guarded(app).ask(exchange=Exchange([b"ab", None]))
    assert seen[0] == {"type": "http.request", "body": b"ab", "more_body": True}
    assert seen[1]["type"] == "http.disconnect"


def test_after_the_body_the_app_hears_the_client_itself():
    """Streams look for the client's leaving while they write."""
    seen = []

    async def app(scope, receive, send):
        seen.extend([await receive(), await receive()])

    exchange = Guarded(app).ask(exchange=Exchange([b"ab"]))
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]
    assert exchange.num_received == 2, "the disconnect did not come from the client"


# --- what is passed on


def test_a_stream_passes_piece_by_piece():
    """Each message of the app goes out before the app makes the next; only the id is added."""
    pieces = [{"type": "http.response.body", "body": bytes([n]), "more_body": n < 3} for n in range(4)]
    exchange = Exchange()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 206, "headers": [(b"a", b"b")]})
        for count, piece in enumerate(pieces):
            assert len(exchange.sent) == count + 1
            await send(piece)

    guarded = Guarded(app)
    guarded.ask(exchange=exchange)
    assert exchange.sent[1:] == pieces
    assert (exchange.status, exchange.header("a"), len(exchange.sent[0]["headers"])) == (206, ["b"], 2)
    assert guarded.answers() == {"206": 1.0}


# --- the count of requests at work, and closing down

NOT_WORK = ("/health", "/metrics", "/gradio_api/heartbeat/abc", "/app/gradio_api/heartbeat/abc")
WORK = ("/", "/v1/completions", "/healthy", "/metrics/x", "/gradio_api/queue/data")


@pytest.mark.parametrize("path", [*NOT_WORK, *WORK])
def test_requests_count_as_work_while_they_run(path):
    """Except those that watch the server or only keep a page open."""
    seen = []

    async def app(scope, receive, send):
        seen.append(guarded.work.num_requests)
        await echo(scope, receive, send)

    guarded = Guarded(app)
    guarded.ask(path)
    assert seen == [int(path in WORK)]


@pytest.mark.parametrize("path", [*NOT_WORK, *WORK])
def test_a_server_that_stops_refuses_new_work_only(path):
    guarded = Guarded()
    guarded.work.draining = True
    answer = guarded.ask(path)
    assert answer.status == (503 if path in WORK else 200)
    assert answer.header("retry-after") == (["5"] if path in WORK else [])


def test_a_stranger_is_not_told_that_the_server_stops():
    guarded = Guarded(key=KEY)
    guarded.work.draining = True
    assert guarded.ask().status == 401


def test_a_request_that_ends_leaves_the_others_in_the_count():
    ends = [asyncio.Event() for _ in range(3)]

    async def app(scope, receive, send):
        await scope["end"].wait()

    guarded = Guarded(app)

    async def one_by_one() -> list[int]:
        scopes = [{"type": "http", "path": "/", "headers": [], "end": end} for end in ends]
        calls = [asyncio.ensure_future(guarded._guards(one, Exchange().receive, Exchange().send)) for one in scopes]
        while guarded.work.num_requests < 3:
            await asyncio.sleep(0)
        counts = []
        for end, call in zip(ends, calls, strict=True):
            end.set()
            await call
            counts.append(guarded.work.num_requests)
        return counts

    assert asyncio.run(one_by_one()) == [2, 1, 0]


def test_requests_at_once_are_counted_each_and_a_failing_app_is_no_longer_at_work():
    """``ask`` checks that nothing is left in the count, whatever happened."""
    most, both = [], asyncio.Event()

    async def app(scope, receive, send):
        most.append(guarded.work.num_requests)
        if len(most) == 3:
            both.set()
        await both.wait()
        raise RuntimeError("the app failed")

    guarded = Guarded(app)

    async def together() -> list[BaseException | None]:
        scope = {"type": "http", "path": "/", "headers": []}
        calls = [guarded._guards(dict(scope), (one := Exchange()).receive, one.send) for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    failed = asyncio.run(together())
    assert [str(error) for error in failed] == ["the app failed"] * 3
    assert (max(most), guarded.work.num_requests) == (3, 0)
    with pytest.raises(RuntimeError, match="the app failed"):
        guarded.ask()
