"""The guards read bodies whole, within the limits of size and time, and pass on that a client leaves."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from making_guards import BODY_BYTES, Exchange, Guarded


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
