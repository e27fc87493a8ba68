"""Reads the JSON bodies of requests. What cannot be read is refused with a message that says what to send instead."""

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from serve.errors import MediaTypeError, RequestError

GZIP_MAGIC = b"\x1f\x8b"
ADVICE = "send the request's fields as a JSON object with 'Content-Type: application/json'"


class JsonRoute(APIRoute):
    """A route whose requests have a JSON object as body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            read = _ReadRequest(request.scope, request.receive)
            check_headers(read)
            read.value = parse(await read.body())
            return await handle(read)

        return read_and_handle


class _ReadRequest(Request):
    """A request whose body has been read."""

    value: Any
    """The parsed body."""

    async def json(self) -> Any:
        """The parsed body; FastAPI calls this."""
        return self.value


def check_headers(request: Request) -> None:
    """Refuses bodies that are compressed or declared to be something else than JSON.

    Browsers let every page send a form or plain text to any server, but they ask the server before they send JSON. So
    bodies without JSON's content type are refused even if they contain JSON.

    Raises:
        MediaTypeError: the headers do not announce uncompressed JSON.
    """
    encoding = request.headers.get("content-encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        raise MediaTypeError(f"the body has 'Content-Encoding: {encoding}'; send it uncompressed, without this header")
    found = request.headers.get("content-type", "")
    message = Message()
    message["content-type"] = found
    subtype = message.get_content_subtype()
    if message.get_content_maintype() != "application" or not (subtype == "json" or subtype.endswith("+json")):
        says = f"has 'Content-Type: {found}'" if found else "has no Content-Type"
        raise MediaTypeError(f"the request {says}; {ADVICE} (curl: -H 'Content-Type: application/json')")


def parse(body: bytes) -> dict[str, Any]:
    """The fields in a body.

    Raises:
        RequestError: the body is not a JSON object.
        MediaTypeError: the body is compressed.
    """
    if not body:
        raise RequestError(f"body: is empty; {ADVICE}")
    text = _text(body)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise RequestError(f"body: is not valid JSON ({error.msg} at {place}); send a JSON object") from error
    except RecursionError as error:
        raise RequestError("body: is nested too deeply; send a JSON object as /docs describes it") from error
    except ValueError as error:
        # The only other cause: Python limits the digits of integers that it reads.
        raise RequestError("body: contains an integer with thousands of digits; send a shorter one") from error
    if not isinstance(value, dict):
        raise RequestError(f"body: is {_KINDS[type(value)]}; send a JSON object with the fields that /docs lists")
    return value


def _text(body: bytes) -> str:
    """A body as text: UTF-8, or UTF-16 or UTF-32 if it begins as such."""
    encoding = json.detect_encoding(body)
    try:
        # Lone surrogates are reported later, for the field that has them.
        return body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        if body.startswith(GZIP_MAGIC):
            raise MediaTypeError("the body is compressed by gzip; send it uncompressed") from error
        raise RequestError(
            f"body: is not valid {encoding.upper()}: byte {error.start} (0x{body[error.start]:02x}) does not belong to "
            "a character; encode the JSON text as UTF-8"
        ) from error


_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
