"""Reads the JSON bodies of requests. What cannot be read is refused with a message that says what to send instead."""

import gc
import json
import threading
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from serve.aside import aside
from serve.errors import MediaTypeError, RequestError

GZIP_MAGIC = b"\x1f\x8b"
ADVICE = "send the request's fields as a JSON object with 'Content-Type: application/json'"
LARGE = 16_384
"""Bytes. Bodies that are larger than this are read aside of the event loop."""
MOST_MARKS = 32_768
"""Braces, brackets and colons that a body may have outside of texts. Reading more would take long and much memory."""
_loading = threading.Lock()


class JsonRoute(APIRoute):
    """A route whose requests have a JSON object as body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handle = super().get_route_handler()
        body_type: Any = None if self.body_field is None else self.body_field.field_info.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(body_type)

        async def read_and_handle(request: Request) -> Response:
            check_headers(request)
            return await handle(_ReadRequest(request, await _read(adapter, request)))

        return read_and_handle


class _ReadRequest(Request):
    """A request whose body has been read and checked."""

    def __init__(self, request: Request, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._values = [value]

    async def body(self) -> bytes:
        """Tells FastAPI that there is a body. The bytes are not kept while the request runs."""
        return b"{}"

    async def json(self) -> Any:
        """The checked body; FastAPI calls this once, and finds nothing to change in a value of the right type."""
        return self._values.pop()


async def _read(adapter: TypeAdapter[Any], request: Request) -> Any:
    """The checked body.

    Raises:
        RequestError: the body is not a JSON object.
        MediaTypeError: the body is compressed.
        RequestValidationError: a field is wrong.
    """
    body = b"".join([chunk async for chunk in request.stream()])
    return checked(adapter, body) if len(body) <= LARGE else await aside(checked, adapter, body)


def checked(adapter: TypeAdapter[Any], body: bytes) -> Any:
    """Reads a body and checks it; raises like ``_read``."""
    value = _value_or_error(adapter, parse(body))
    if isinstance(value, RequestValidationError):
        raise value
    return value


def _value_or_error(adapter: TypeAdapter[Any], values: dict[str, Any]) -> Any:
    """The checked value, or an error that does not refer to the values, which may be large."""
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        return RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found])


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
    if _has_many_marks(text):
        raise RequestError(
            f"body: has more than {MOST_MARKS} objects, lists and fields, or is nested too deeply; send a JSON object "
            "as /docs describes it"
        )
    value, fault = _loaded(text)
    if fault is not None:
        raise RequestError(f"body: {fault}")
    if not isinstance(value, dict):
        raise RequestError(f"body: is {_KINDS[type(value)]}; send a JSON object with the fields that /docs lists")
    return value


def _has_many_marks(text: str) -> bool:
    """Whether a JSON text has more braces, brackets and colons than it may have."""
    if _num_marks(text) <= MOST_MARKS:
        return False
    # The slow way, for bodies whose texts may have them. What escapes a quotation mark goes first.
    return _num_marks("".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])) > MOST_MARKS


def _num_marks(text: str) -> int:
    return sum(map(text.count, "{[:"))


def _loaded(text: str) -> tuple[Any, str | None]:
    """The value of a JSON text, or what is wrong with the text. Python's own errors would keep the whole text."""
    try:
        with _loading:
            # Otherwise the garbage collector would examine the new objects again and again, for seconds. It would find
            # nothing: the values of a JSON text never refer to each other in circles.
            gc.disable()
            try:
                return json.loads(text), None
            finally:
                gc.enable()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        return None, f"is not valid JSON ({error.msg} at {place}); send a JSON object"
    except RecursionError:
        return None, "is nested too deeply; send a JSON object as /docs describes it"
    except ValueError:
        # The only other cause: Python limits the digits of integers that it reads.
        return None, "contains an integer with thousands of digits; send a shorter one"


def _text(body: bytes) -> str:
    """A body as text: UTF-8, or UTF-16 or UTF-32 if it begins as such."""
    encoding = json.detect_encoding(body)
    try:
        # Lone surrogates are reported later, for the field that has them.
        return body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        place = error.start
    if body.startswith(GZIP_MAGIC):
        raise MediaTypeError("the body is compressed by gzip; send it uncompressed")
    raise RequestError(
        f"body: is not valid {encoding.upper()}: byte {place} (0x{body[place]:02x}) does not belong to a character; "
        "encode the JSON text as UTF-8"
    )


_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
