"""The process: starts, serves, and stops in order.

SIGTERM and Ctrl-C close the door: ``/health`` answers 503, new requests are refused, running ones finish within a
limit, after which they are told so. A second signal ends them at once.
"""

import logging
import time
from collections.abc import Mapping
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from serve.api.app import create_app
from serve.metrics import Metrics
from serve.service import Service

log = logging.getLogger("serve")
GRACE_S = 2.0
"""Of the limit: for streams that are ended early to say so."""


class Server(uvicorn.Server):
    """uvicorn's, but that it drains before it stops, and then ends with code 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal closes the door, a second one ends what still runs."""
        now = time.monotonic()
        if self._ends_at is None:
            log.info("stopping: %d requests may finish within %.0f s", self._service.num_requests, self._limit_s)
        self._ends_at = now + max(self._limit_s - GRACE_S, 0.0) if self._ends_at is None else now
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second."""
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
    key: str | None = None,
    mounts: Mapping[str, ASGIApp] | None = None,
) -> None:
    """Serves until a signal comes. The port may be 0: the log says which one it became."""
    app = create_app(service, metrics, key, mounts)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        # The same everywhere, whatever else is installed.
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
