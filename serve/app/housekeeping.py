"""Removes what visitors leave behind, and refuses those of Gradio's routes that store files.

Gradio keeps the state of a session until it has 10,000 sessions, and deletes expired results and files only if the
application runs its *lifespan*, which a mounted application does not by itself.
"""

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serve.api.prefix import route_of

log = logging.getLogger("serve")
MAX_SESSIONS = 200
"""Sessions whose state is kept; beyond that, those that were used least recently are forgotten."""
SESSION_S = 3600.0
"""Seconds after which a session that its visitor has not used is forgotten. Open pages continue with a new one."""
FILES_S = 600
"""Seconds after which a file that Gradio has written is deleted; at the end of the server all are."""
EVERY_S = 60.0
"""Seconds between two looks for sessions that can be forgotten."""
REFUSED = ("upload", "upload_progress", "deep_link", "process_recording", "component_server", "proxy=", "vibe-", "runs")
"""Beginnings of Gradio's routes (below ``/gradio_api``) that the app does not use and that write files, answer with
files, or fetch addresses."""
API = "/gradio_api/"


class Housekeeping:
    """ASGI middleware around Gradio's application, which it starts at the first request.

    The application's tasks must belong to the server's event loop. They run until the server cancels all tasks.
    """

    def __init__(self, app: FastAPI, sessions: Any) -> None:
        """
        Args:
            app: the application into which Gradio is mounted.
            sessions: the ``StateHolder`` of Gradio's blocks.
        """
        self._app, self._sessions = app, sessions
        self._started: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and is_refused(route_of(scope)):
            await PlainTextResponse("the app does not have this route", 404)(scope, receive, send)
            return
        if self._started is None:
            self._started = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._live(self._started))
        await asyncio.shield(self._started)
        await self._app(scope, receive, send)

    async def _live(self, started: "asyncio.Future[None]") -> None:
        """Runs Gradio's queue and its deletion of files, and forgets sessions, until it is cancelled."""
        try:
            async with self._app.router.lifespan_context(self._app):
                started.set_result(None)
                while True:
                    await asyncio.sleep(EVERY_S)
                    if number := forget(self._sessions, SESSION_S):
                        log.debug("forgot %d abandoned sessions of the app", number)
        except Exception as error:
            if not started.done():
                started.set_exception(error)
            log.exception("the app's housekeeping ended")


def is_refused(route: str) -> bool:
    """Whether a route is one of ``REFUSED``."""
    return route.startswith(API) and route.removeprefix(API).startswith(REFUSED)


def forget(sessions: Any, unused_s: float) -> int:
    """Forgets the sessions that have not been used for this time; returns how many.

    Args:
        sessions: Gradio's ``StateHolder``.
        unused_s: seconds.
    """
    with sessions.lock:
        before = datetime.now() - timedelta(seconds=unused_s)
        old = [name for name, used in list(sessions.time_last_used.items()) if used < before]
        for name in old:
            sessions.session_data.pop(name, None)
            sessions.time_last_used.pop(name, None)
    return len(old)
