"""The server process: starts, serves, and shuts down gracefully.

After SIGTERM or Ctrl-C the server drains: ``/health`` answers 503, new requests are refused, and running requests may
finish within ``--drain-s`` seconds; those that do not finish get an error. A second signal fails them at once.
"""

import logging
import time
from collections.abc import Mapping
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from serve.access import Access
from serve.api.app import create_app
from serve.metrics import Metrics
from serve.service import Service

log = logging.getLogger("serve")
GRACE_S = 2.0
"""The last seconds of the drain limit, reserved for sending the error to requests that did not finish."""


class Server(uvicorn.Server):
    """uvicorn's server, except that it drains before it stops, and then exits with code 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts draining, a second one ends it at once."""
        now = time.monotonic()
        if self._ends_at is None:
            log.info(
                "stopping: %d running requests may finish within %.0f s", self._service.num_requests, self._limit_s
            )
        self._ends_at = now + max(self._limit_s - GRACE_S, 0.0) if self._ends_at is None else now
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; stops the server when all requests finished or the limit is over."""
        if self._ends_at is not None and not self.should_exit:
            late = time.monotonic() >= self._ends_at
            if late or not self._service.num_requests:
                if late:
                    log.warning("%d requests did not finish in time", self._service.num_requests)
                    self._service.fail_all()
                self.should_exit = True
        return await super().on_tick(counter)

    @property
    def _limit_s(self) -> float:
        return self._service.limits.drain_s


def run_server(
    service: Service,
    metrics: Metrics,
    host: str,
    port: int,
    access: Access,
    mounts: Mapping[str, ASGIApp] | None = None,
    root_path: str | None = None,
) -> None:
    """Serves until the process gets a signal.

    Args:
        service: runs the requests.
        metrics: shown at ``/metrics``.
        host: address to listen on.
        port: port to listen on; 0 chooses a free one, which the log reports.
        access: who may use the server.
        mounts: further ASGI apps by path.
        root_path: the path under which a reverse proxy offers the server, see ``Prefix``.
    """
    app = create_app(service, metrics, access, mounts, root_path)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        # Fixed, so that the server behaves the same whether or not uvloop or httptools are installed.
        loop="asyncio",
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(GRACE_S)),
        lifespan="off",
    )
    try:
        Server(config, service).run()
    finally:
        service.close()
