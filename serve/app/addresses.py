"""Makes all addresses in the app's page relative to the page, so that they are right under any host and path.

Gradio writes absolute addresses into its page, made of the host and the path that reach the server. Behind a reverse
proxy these may not be the ones that the browser knows. It also links to ``/manifest.json``, and browsers request
``/favicon.ico``, outside of the path under which the app is mounted.
"""

import re

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.prefix import route_of

MANIFEST = JSONResponse({"name": "coconut-ds", "start_url": "app/", "display": "browser"})
"""Served at the root. ``start_url`` is relative to the manifest's own address."""
OWN_MANIFEST = JSONResponse({"name": "coconut-ds", "start_url": "./", "display": "browser"})
ICON = Response(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="3" fill="#0072B2"/></svg>',
    media_type="image/svg+xml",
)
OWN = {"/manifest.json": OWN_MANIFEST, "/favicon.ico": ICON}
"""Responses by path below the app's own."""
IGNORED = frozenset({b"x-forwarded-host", b"x-gradio-server", b"origin"})
"""Headers of requests that Gradio does not get: it would make addresses of the first two, without a path, and allow
other sites to use the app because of the third."""
MANIFEST_LINK = b'<link rel="manifest" href="/manifest.json" />'
OWN_LINKS = b'<link rel="manifest" href="./manifest.json" /><link rel="icon" href="./favicon.ico" />'
ROOT = re.compile(rb'"root":"(https?://[^"]*)"')
"""The address of the app in the page's configuration."""


class OwnAddresses:
    """ASGI middleware around the app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._page = app, GZipMiddleware(_Page(app))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = route_of(scope)
        headers = [(name, value) for name, value in scope["headers"] if name not in IGNORED]
        target = OWN.get(path) or (self._page if path == "/" else self._app)
        await target({**scope, "headers": headers}, receive, send)


class _Page:
    """Rewrites the page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        # Not compressed by Gradio, because compressed text cannot be rewritten.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message = {}
        chunks: list[bytes] = []

        async def rewritten(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            chunks.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = relative(b"".join(chunks))
            headers = MutableHeaders(scope=start)
            headers["content-length"] = str(len(body))
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self._app({**scope, "headers": headers}, receive, rewritten)


def relative(page: bytes) -> bytes:
    """The HTML of the page with relative addresses."""
    root = ROOT.search(page)
    if root is not None:
        # In the configuration, and in the script that loads the first file with it. Both resolve it against the page's
        # own address.
        page = page.replace(b'"' + root[1] + b'"', b'"."')
    return page.replace(MANIFEST_LINK, OWN_LINKS)
