"""The event stream of the app: what Gradio writes at once is one chunk, and nothing is lost, reordered or hidden."""

import asyncio

import pytest

from serve.app.event_stream import END, ENDED, EVENT, STREAM, WholeEvents, _session

START = {"type": "http.response.start", "status": 200, "headers": []}


def body(content: bytes, more: bool = True) -> dict:
    return {"type": "http.response.body", "body": content, "more_body": more}


def sent_for(messages: list, path: str = STREAM, send=None) -> list:
    """What a server gets of an app that sends these messages; a number is a pause in seconds."""
    found: list = []

    async def app(scope, receive, forward):
        for message in messages:
            await (asyncio.sleep(message) if isinstance(message, float) else forward(message))

    async def record(message):
        await asyncio.sleep(0)
        found.append(message)

    asyncio.run(
        WholeEvents(app)({"type": "http", "path": path, "root_path": "", "query_string": b""}, None, send or record)
    )
    return found


@pytest.mark.parametrize(
    ("messages", "chunks"),
    [
        ([body(b"a"), body(b"b"), 0.01, body(b"c"), body(b"", False)], [b"ab", b"c", b""]),
        ([body(b"a"), 0.01, body(b"b"), body(b"c", False)], [b"a", b"bc", b""]),
        ([body(b"whole answer", False)], [b"whole answer"]),
        ([body(b"a"), body(b"b", False)], [b"ab", b""]),
    ],
)
def test_what_is_written_without_waiting_is_one_chunk(messages, chunks):
    found = sent_for([START, *messages])
    assert found[0] == START
    assert b"".join(one["body"] for one in found[1:]) == b"".join(chunks)
    assert [one["body"] for one in found[1:]] == chunks
    assert [one.get("more_body", False) for one in found[1:]] == [True] * (len(chunks) - 1) + [False]


def test_other_paths_are_passed_on_as_they_are():
    messages = [START, body(b"a"), body(b"b"), body(b"", False)]
    assert sent_for(messages, "/other") == messages


def test_an_error_of_the_connection_reaches_the_app():
    async def fail(message):
        if message["type"] == "http.response.body":
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        sent_for([START, body(b"a"), 0.01, body(b"b"), 0.01, body(b"c")], send=fail)


@pytest.mark.parametrize("sent", [b"", b"no JSON", b"[" * 100_000, b"[1]", b"\xff", b"{}"])
def test_a_body_without_a_session_is_no_error_and_belongs_to_none(sent):
    assert _session(sent) == ""


def test_the_answer_to_an_event_tells_how_many_streams_of_its_session_have_ended():
    """A stream has ended as soon as its last message is written, and each session has its own."""
    found = []

    async def app(scope, receive, forward):
        if scope["path"] == STREAM:
            await forward(START)
            await forward(body(b"data: {" + END + b"}"))
            await ask("a")
            await forward(body(b"", False))
        else:
            await receive()
            await forward(START | {"headers": []})

    app = WholeEvents(app)

    async def stream(session):
        query = f"session_hash={session}".encode()
        await app({"type": "http", "path": STREAM, "root_path": "", "query_string": query}, None, drop)

    async def drop(message):
        pass

    async def ask(session):
        async def receive():
            return {"type": "http.request", "body": f'{{"session_hash": "{session}"}}'.encode()}

        async def note(message):
            found.append((session, dict(message["headers"])[ENDED.lower().encode()]))

        await app({"type": "http", "path": EVENT, "root_path": "", "query_string": b""}, receive, note)

    async def visit():
        await ask("a")
        await stream("a")
        await stream("b")
        await ask("a")

    asyncio.run(visit())
    assert found == [("a", b"0"), ("a", b"1"), ("a", b"1"), ("a", b"1")]
