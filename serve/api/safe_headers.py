"""Headers that tell browsers what the server's pages may load, and that no other site may put them into a frame."""

from collections.abc import Collection

from serve.api.prefix import App, Message, Receive, Scope, Send, route_of

PAGES = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content security policy of the server's own pages, which contain no scripts."""
MOUNTED = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""That of the app: Gradio's page has scripts in it, and Plotly makes functions from text."""
FRAMES = "; frame-ancestors 'self'"
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    # The address of a page may contain a question, which other sites must not see.
    (b"referrer-policy", b"same-origin"),
    # For browsers that do not know ``frame-ancestors``.
    (b"x-frame-options", b"SAMEORIGIN"),
)


class SafeHeaders:
    """ASGI middleware that adds the headers to all responses that do not have them."""

    def __init__(self, app: App, mounts: Collection[str]) -> None:
        """``mounts``: paths of mounted apps."""
        self._app, self._mounts = app, tuple(mounts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = route_of(scope)
        is_mounted = path in self._mounts or path.startswith(tuple(f"{mount}/" for mount in self._mounts))
        policy = ((MOUNTED if is_mounted else PAGES) + FRAMES).encode()

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                added = (*HEADERS, (b"content-security-policy", policy))
                message = {**message, "headers": headers + [one for one in added if one[0] not in present]}
            await send(message)

        await self._app(scope, receive, with_headers)
