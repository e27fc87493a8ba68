"""The header with which a client says how long it waits for an answer."""

import math

from fastapi import Request

from serve.errors import RequestError

HEADER = "X-Request-Timeout"


def timeout_of(request: Request) -> float | None:
    """Seconds after which the client no longer wants the answer; None: it does not say.

    Raises:
        RequestError: the header's value is not a number of seconds.
    """
    value = request.headers.get(HEADER)
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError(f"the header {HEADER} is {value[:40]!r}; expected a number of seconds greater than 0")
    return seconds
