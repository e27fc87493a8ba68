"""The guards around the server's app, in process: request id, key, work count, closing down."""

import asyncio
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from making_guards import KEY, Exchange, Guarded, basic, bearer, echo

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
    assert Guarded(key="").ask(headers=headers).status == (200 if headers == bearer("") else 401)


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


def test_an_answer_without_headers_gets_the_id_all_the_same():
    """ASGI lets apps omit the list."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204})

    assert len(Guarded(app).ask().sent[0]["headers"]) == 1


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
