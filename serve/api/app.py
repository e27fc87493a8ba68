"""Creates the server's ASGI app from its routes, error handlers and guards."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

import coconut_ds
from serve.api import completions, status, thoughts
from serve.api.errors import add_handlers
from serve.api.guards import Guards
from serve.api.head import HeadAsGet
from serve.api.pages import add_pages
from serve.api.prefix import Prefix
from serve.api.records import Record, Records
from serve.api.safe_headers import SafeHeaders
from serve.api.streams import ClientGoneError
from serve.clients.access import Access
from serve.monitoring.metrics import Metrics
from serve.monitoring.throttled import ThrottledLog
from serve.requests.service import Service

CLIENT_GONE = 499
"""Status counted for a request whose client disconnected before the response (nginx's number)."""


@dataclass(frozen=True)
class Hooks:
    """What connects the app with the process that serves it."""

    is_full: Callable[[], bool] = lambda: False
    """Whether the server takes no other requests, since it is answering as many as it can."""
    receivers: Sequence[Callable[[Record], None]] = ()
    """Called with the record of each request that has ended."""
    log: ThrottledLog = field(default_factory=lambda: ThrottledLog(logging.getLogger("serve")))
    """Gets the events that clients can cause at will; the process flushes it."""


def create_app(
    service: Service,
    metrics: Metrics,
    access: Access | None = None,
    mounts: Mapping[str, ASGIApp] | None = None,
    root_path: str | None = None,
    hooks: Hooks | None = None,
    home: str | None = None,
) -> FastAPI:
    """Creates the server's ASGI app.

    Args:
        service: runs the requests.
        metrics: shown at ``/metrics``.
        access: who may use the server; None: everybody who can connect to it.
        mounts: further ASGI apps by path, protected in the same way.
        root_path: the path under which a reverse proxy offers the server, see ``Prefix``.
        hooks: what connects the app with its process; None: nothing.
        home: path of the mounted app that ``/`` leads to; None: ``/`` is a page about the API.
    """
    app = FastAPI(
        title="coconut-ds",
        version=coconut_ds.__version__,
        description="Serves checkpoints that reason in continuous thoughts, with OpenAI's protocol.",
        # FastAPI's own pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
    )
    for routes in (completions.routes(service), thoughts.routes(service), status.routes(service, metrics)):
        app.include_router(routes)
    add_handlers(app)
    for gone in (ClientGoneError, ClientDisconnect):
        app.add_exception_handler(gone, _on_client_gone)
    mounts, hooks = mounts or {}, hooks or Hooks()
    add_pages(app, service, mounts, home)
    for path, mounted in mounts.items():
        app.mount(path, mounted)
    app.add_middleware(HeadAsGet, mounts=mounts)
    app.add_middleware(
        Guards,
        service=service,
        limits=service.limits,
        access=access or Access(),
        counter=metrics.http_requests,
        mounts=mounts,
        is_full=hooks.is_full,
        log=hooks.log,
    )
    app.add_middleware(SafeHeaders, mounts=mounts)
    app.add_middleware(Records, receivers=hooks.receivers)
    # Added last, so that it comes first: the guards compare paths without the prefix.
    app.add_middleware(Prefix, root_path=root_path)
    return app


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
