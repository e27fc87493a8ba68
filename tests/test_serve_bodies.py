"""Bodies of requests as clients and scripts send them: what can be read is read, the rest is told what to send."""

import gzip
import json
import re

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from serve.api import bodies
from serve.api.bodies import JsonRoute, checked, parse
from serve.api.errors import add_handlers
from serve.api.schema import ChatRequest, CompletionRequest, ThoughtsRequest
from serve.errors import MediaTypeError, RequestError

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OBJECT = b'{"question": "2 + 2"}'
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def http():
    app = FastAPI()
    app.router.route_class = JsonRoute

    @app.post("/")
    async def echo(body: dict[str, str]) -> dict[str, str]:
        return body

    add_handlers(app)
    with TestClient(app) as one:
        yield one


@given(value=st.dictionaries(st.text(max_size=5), VALUE, max_size=3), encoding=st.sampled_from(["utf-8", "utf-8-sig"]))
def test_a_json_object_is_read(value, encoding):
    assert parse(json.dumps(value, ensure_ascii=False).encode(encoding, "surrogatepass")) == value
    assert parse(json.dumps(value).encode("utf-16")) == value


@settings(max_examples=150)
@given(body=st.binary(max_size=60) | st.text(max_size=30).map(str.encode) | VALUE.map(json.dumps).map(str.encode))
def test_every_other_body_is_refused_and_nothing_else_happens(body):
    try:
        values = json.loads(body)
    except ValueError:
        values = None
    if isinstance(values, dict):
        assert parse(body) == values
    else:
        with pytest.raises((RequestError, MediaTypeError), match=r"send|encode"):
            parse(body)


def long_list(item: str) -> str:
    """As many items as the largest body has room for."""
    return "[" + ",".join([item] * ((1 << 20) // (len(item) + 1) - 200)) + "]"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionRequest, '"model": "m", "prompt": ' + long_list("null")),
        (CompletionRequest, '"model": "m", "prompt": [1, "a", ' + long_list("1.5")[1:]),
        (CompletionRequest, '"model": "m", "prompt": "a", "stop": ' + long_list("1")),
        (CompletionRequest, '"prompt": "a", ' + ", ".join(f'"{number:x}": 0' for number in range(30_000))),
        (ChatRequest, '"model": "m", "messages": ' + long_list("1")),
        (ChatRequest, '"model": "m", "messages": [{"role": "user", "content": ' + long_list("1") + "}]"),
        (ThoughtsRequest, '"model": "m", "question": "a", "tokens": ' + long_list("1")),
        (CompletionRequest, '"model": "m", "prompt": "a", "tools": ' + long_list("1")),
        (CompletionRequest, f'"model": "m", "prompt": "a", "tools": {"[" * 900}{"]" * 900}'),
        (CompletionRequest, '"model": "m", "prompt": "a", "user": ' + long_list('{"":0}')),
        (CompletionRequest, '"model": "m", "prompt": "a", "user": ' + "[" * 500_000),
    ],
    ids=range(11),
)
def test_the_first_fault_ends_the_check_of_a_large_body(kind, fields):
    """A list of 500,000 wrong items would otherwise be 500,000 errors, several times over."""
    with pytest.raises((RequestValidationError, RequestError)) as caught:
        checked(TypeAdapter(kind), f"{{{fields}}}".encode())
    assert len(getattr(caught.value, "errors", list)()) <= 8
    assert len(repr(caught.value)) < 3000


@settings(max_examples=60)
@given(value=VALUE)
@example(value='"[:\\')
@example(value='\\"{"')
def test_only_marks_outside_of_texts_count(value):
    for text in (json.dumps({"a": value}), json.dumps({"a": value}, ensure_ascii=False)):
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
        count = sum(map(outside.count, "{[:"))
        for most in (count - 1, count):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(bodies, "MOST_MARKS", most)
                assert bodies._has_many_marks(text) == (most < count)


@pytest.mark.parametrize(
    ("headers", "content", "status", "says"),
    [
        # curl -d without a header, and with no content type at all
        ({"content-type": FORM}, OBJECT, 415, f"has 'Content-Type: {FORM}'; send"),
        (
            {},
            OBJECT,
            415,
            "has no Content-Type; send the request's fields as a JSON object with 'Content-Type: applicat",
        ),
        ({"content-type": "text/plain"}, OBJECT, 415, "curl: -H 'Content-Type: application/json'"),
        ({"content-type": "json"}, OBJECT, 415, "has 'Content-Type: json'"),
        (
            {"content-type": JSON, "content-encoding": "gzip"},
            gzip.compress(OBJECT, mtime=0),
            415,
            "'Content-Encoding: gzip'",
        ),
        ({"content-type": JSON, "content-encoding": "br"}, OBJECT, 415, "send it uncompressed"),
        ({"content-type": JSON}, gzip.compress(OBJECT, mtime=0), 415, "compressed by gzip; send it uncompressed"),
        ({"content-type": JSON}, '{"question": "é"}'.encode("latin-1"), 400, "byte 14 (0xe9) does not belong"),
        ({"content-type": JSON}, b'{"question": "\xf0\x9f\x98', 400, "not valid UTF-8"),
        ({"content-type": JSON}, b"", 400, "is empty; send"),
        ({"content-type": JSON}, b"{'question': 'a'}", 400, "double quotes at line 1, column 2"),
        ({"content-type": JSON}, b"question=a", 400, "is not valid JSON"),
        ({"content-type": JSON}, b"[" * 50_000, 400, "nested too deeply"),
        ({"content-type": JSON}, b'{"question": ' + b"1" * 5000 + b"}", 400, "thousands of digits"),
        ({"content-type": JSON}, b'["question"]', 400, "is a list; send a JSON object"),
        ({"content-type": JSON}, b'"question"', 400, "is a string; send a JSON object"),
        ({"content-type": JSON}, b"1", 400, "is a number; send"),
        ({"content-type": JSON}, b"null", 400, "is null; send"),
        ({"content-type": JSON}, OBJECT, 200, "2 + 2"),
        ({"content-type": "application/json; charset=utf-8", "content-encoding": "identity"}, OBJECT, 200, "2 + 2"),
        ({"content-type": "application/vnd.api+json"}, b"\xef\xbb\xbf" + OBJECT, 200, "2 + 2"),
        ({"content-type": JSON}, OBJECT.decode().encode("utf-16"), 200, "2 + 2"),
    ],
    # The bodies themselves would be names of tests, some of 50,000 characters.
    ids=lambda value: "body" if isinstance(value, bytes) else None,
)
def test_the_answer_says_what_to_send(http, headers, content, status, says):
    answer = http.post("/", content=content, headers=headers)
    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    if status != 200:
        assert answer.json()["error"]["type"] == "invalid_request_error"
