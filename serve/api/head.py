"""Answers HEAD requests, which load balancers and monitors send, wherever GET is answered."""

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.prefix import route_of


class HeadAsGet:
    """ASGI middleware that answers HEAD like GET, without the body.

    FastAPI's own routes do not accept HEAD. Mounted apps are left alone, since some of their GET routes never end.
    """

    def __init__(self, app: ASGIApp, mounts: Collection[str]) -> None:
        """``mounts``: paths of mounted apps."""
        self._app, self._mounts = app, tuple(mounts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or self._is_mounted(scope):
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)

    def _is_mounted(self, scope: Scope) -> bool:
        path = route_of(scope)
        return path.startswith(tuple(f"{mount}/" for mount in self._mounts)) or path in self._mounts
