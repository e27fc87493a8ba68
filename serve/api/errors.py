"""Errors as OpenAI's clients know them."""

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
TRIED = ("str", "int", "float", "bool", "none")
TYPES = {500: "server_error", 503: "server_error", 429: "rate_limit_error"}


def body_of(error: ServiceError) -> dict[str, Any]:
    """The body of an error."""
    return _body(str(error), error.type, error.param, error.code)


def headers_of(error: ServiceError) -> dict[str, str]:
    """Headers that go with it."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="coconut"'
    return headers


def response_of(error: ServiceError) -> JSONResponse:
    """The answer to a request that ran into an error."""
    return JSONResponse(body_of(error), error.status, headers_of(error))


def add_handlers(app: FastAPI) -> None:
    """Has all errors of an app answered in this shape."""
    app.add_exception_handler(CoconutError, _on_own)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_own(request: Request, error: Exception) -> Response:
    if isinstance(error, ServiceError):
        return response_of(error)
    # What a user could mend, told by the model's own parts.
    return JSONResponse(_body(str(error), "invalid_request_error"), 400)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """The first of what does not fit; where a field may be one of several types, what came furthest."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    same = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]
    first = max(same, key=lambda one: len(one["loc"]))
    # Names of fields and numbers of entries; not those of the types that were tried.
    parts = [part for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part not in TRIED)]
    where = [str(part) for part in parts if part != "body"]
    if first["type"] == "json_invalid":
        return JSONResponse(_body(f"body: is no JSON ({first['ctx']['error']})", "invalid_request_error"), 400)
    if first["type"] == "extra_forbidden":
        message = f"{'.'.join(where)}: this field is unknown"
    else:
        message = f"{'.'.join(where) or 'body'}: {first['msg']}"
    return JSONResponse(_body(_printable(message), "invalid_request_error", where[0] if where else None), 400)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = TYPES.get(error.status_code, "invalid_request_error")
    return JSONResponse(_body(str(error.detail), kind), error.status_code, dict(error.headers or {}))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", "")
    log.error("request %s failed", request_id, exc_info=error)
    return JSONResponse(_body(f"the server failed; its log has more under {request_id}", "server_error"), 500)


def _printable(text: str) -> str:
    """Half characters, which JSON may spell, cannot be sent back."""
    return text.encode("utf-8", "replace").decode("utf-8")[:500]


def _body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    shown = None if param is None else _printable(param)
    return {"error": {"message": _printable(message), "type": kind, "param": shown, "code": code}}
