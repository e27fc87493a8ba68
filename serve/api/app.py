"""The app: routes, errors, guards."""

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

import coconut_ds
from serve.api import completions, status, thoughts
from serve.api.errors import add_handlers
from serve.api.guards import Guards
from serve.api.streams import ClientGoneError
from serve.metrics import Metrics
from serve.service import Service

CLIENT_GONE = 499
"""The status that is logged where nobody reads it (nginx's number)."""


def create_app(
    service: Service, metrics: Metrics, key: str | None = None, mounts: Mapping[str, ASGIApp] | None = None
) -> FastAPI:
    """The server's ASGI app.

    Args:
        service: what answers.
        metrics: what ``/metrics`` shows.
        key: what clients must send; None: nothing.
        mounts: further apps by path, behind the same key.
    """
    app = FastAPI(
        title="coconut-ds",
        version=coconut_ds.__version__,
        description="Checkpoints that reason in continuous thoughts, behind OpenAI's protocol.",
    )
    for routes in (completions.routes(service), thoughts.routes(service), status.routes(service, metrics)):
        app.include_router(routes)
    add_handlers(app)
    app.add_exception_handler(ClientGoneError, _nobody_reads)
    for path, mounted in (mounts or {}).items():
        app.mount(path, mounted)
    app.add_middleware(Guards, service=service, limits=service.limits, key=key, counter=metrics.http_requests)
    return app


async def _nobody_reads(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
