"""Turns errors into HTTP responses with OpenAI's error body."""

import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coconut_ds.errors import CoconutError
from serve.errors import ServiceError

log = logging.getLogger("serve")
TYPE_NAMES = ("str", "int", "float", "bool", "none")
"""Names that pydantic adds to the location of an error in a field with several possible types."""
TYPES = {500: "server_error", 503: "server_error", 429: "rate_limit_error"}
"""OpenAI's error type by HTTP status; other statuses are ``invalid_request_error``."""


def body_of(error: ServiceError) -> dict[str, Any]:
    """The body of the response to an error."""
    return _body(str(error), error.type, error.param, error.code)


def headers_of(error: ServiceError) -> dict[str, str]:
    """The headers of the response to an error."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == 401:
        # Only the scheme that browsers know: Chromium asks for no password if a header names several.
        headers["WWW-Authenticate"] = 'Basic realm="coconut"'
    return headers


def response_of(error: ServiceError) -> JSONResponse:
    """The response to a request that failed with an error."""
    return JSONResponse(body_of(error), error.status, headers_of(error))


def add_handlers(app: FastAPI) -> None:
    """Makes an app respond to all errors with OpenAI's error body."""
    app.add_exception_handler(CoconutError, _on_coconut_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_coconut_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ServiceError):
        return response_of(error)
    # Other errors of coconut_ds are caused by the request's values as well.
    return JSONResponse(_body(str(error), "invalid_request_error"), 400)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Reports the first invalid field; of a field with several possible types, the error of the closest type."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    same = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]
    first = max(same, key=lambda one: len(one["loc"]))
    # Keeps names of fields and indices of entries, and drops the names of types.
    parts = [part for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part not in TYPE_NAMES)]
    where = [str(part) for part in parts if part != "body"]
    if first["type"] == "extra_forbidden":
        message = f"{'.'.join(where)}: this field is unknown; /docs lists the fields of each route"
    else:
        message = f"{'.'.join(where) or 'body'}: {first['msg']}"
    return JSONResponse(_body(_printable(message), "invalid_request_error", where[0] if where else None), 400)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, headers = TYPES.get(error.status_code, "invalid_request_error"), dict(error.headers or {})
    message = str(error.detail)
    if error.status_code == 404:
        message = f"{request.method} {request.url.path}: there is no such route; /docs lists all routes"
    elif error.status_code == 405:
        message = f"{request.url.path}: this route does not accept {request.method}; send {headers['Allow']}"
    return JSONResponse(_body(message, kind), error.status_code, headers)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", "")
    log.error("request %s failed", request_id, exc_info=error)
    message = f"internal error; the server's log has details under request id {request_id}"
    return JSONResponse(_body(message, "server_error"), 500)


def _printable(text: str) -> str:
    """At most 500 characters, with lone surrogates replaced: JSON can contain them, but UTF-8 cannot encode them."""
    return text.encode("utf-8", "replace").decode("utf-8")[:500]


def _body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    shown = None if param is None else _printable(param)
    return {"error": {"message": _printable(message), "type": kind, "param": shown, "code": code}}
