"""The path under which a reverse proxy offers the server, such as ``/models`` or ``/user/me/proxy/8000``.

It is the ``root_path`` of ASGI: routes do not contain it, but every address that the server hands out begins with it. A
proxy may remove it from the paths of requests or leave it there; both are understood.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from coconut_ds.errors import ConfigError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER = b"x-forwarded-prefix"
"""The header in which proxies send the prefix, for example Traefik and jupyter-server-proxy."""
SCHEME_HEADER = b"x-forwarded-proto"
"""The header in which proxies say whether the client's connection is encrypted; used for the addresses in pages."""
ROUTES = frozenset({"app", "v1", "health", "live", "ready", "metrics", "version", "docs", "redoc", "openapi.json"})
ROUTES |= {"manifest.json", "favicon.ico"}
"""First parts of the server's own paths. As a prefix they would be ambiguous: is ``/app/`` behind ``/app`` the app, or
the page above it?"""
PREFIX = re.compile(r"(/(?!\.{1,2}(/|\Z))[^/\s\"'&<>\\?#%^`{|}\x00-\x1f\x7f]+)+")
"""Prefixes without percent-encoding. These characters can be part of HTML and JavaScript without being escaped."""
MAX_CHARACTERS = 512


def root_path_of(option: str) -> str:
    """The prefix that ``--root-path`` sets, without percent-encoding; empty for the root.

    Raises:
        ConfigError: it is not a path, or begins like one of the server's own.
    """
    prefix = _checked(option.rstrip("/")) if option.strip("/") else ""
    if prefix is None:
        raise ConfigError(
            f"--root-path {option}: expected the path under which the proxy offers this server, such as /models, "
            "without a host and without spaces, quotes, '?' or '#'"
        )
    if prefix and _is_ambiguous(prefix):
        raise ConfigError(
            f"--root-path {option}: the server's own paths begin with {prefix[: (prefix + '/').index('/', 1)]} too; "
            "choose another prefix, such as /coconut"
        )
    return prefix


class Prefix:
    """ASGI middleware that sets ``root_path``, and adds it to ``path`` if the proxy has removed it, as ASGI wants."""

    def __init__(self, app: App, root_path: str | None = None) -> None:
        """``root_path``: the prefix; None: that of each request, from its header ``X-Forwarded-Prefix``."""
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        # The server below (for example Ray's proxy) may know the prefix already.
        prefix = scope.get("root_path") or (_sent(scope) if self._root_path is None else self._root_path)
        located = _located(scope, prefix) if prefix else scope
        schemes = [value for name, value in scope["headers"] if name == SCHEME_HEADER]
        if scope["type"] == "http" and schemes in ([b"http"], [b"https"]):
            located = {**located, "scheme": schemes[0].decode()}

        async def redirected(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (307, 308):
                message["headers"] = [
                    (name, _relative(value, located["path"]) if name == b"location" else value)
                    for name, value in message["headers"]
                ]
            await send(message)

        await self._app(located, receive, redirected)


def route_of(scope: Scope) -> str:
    """The path of a request without the prefix."""
    root_path, path = scope.get("root_path", ""), str(scope["path"])
    return path[len(root_path) :] if path == root_path or path.startswith(f"{root_path}/") else path


def _located(scope: Scope, prefix: str) -> Scope:
    """The scope of a request behind a prefix, with the whole path."""
    path, raw_path = scope["path"], scope.get("raw_path")
    if _is_ambiguous(prefix) or not (path == prefix or path.startswith(f"{prefix}/")):
        path = prefix + path
        raw_path = raw_path and quote(prefix).encode() + raw_path
    return {**scope, "root_path": prefix, "path": path, "raw_path": raw_path}


def _sent(scope: Scope) -> str:
    """The prefix in the request's headers, one part from each proxy on the way, outermost first; empty if invalid.

    Clients can send the header too, so it must not be able to smuggle hosts or scripts into pages.
    """
    sent = b",".join(value for name, value in scope["headers"] if name == HEADER).decode("latin-1")
    parts = [part.strip().rstrip("/") for part in sent.split(",")]
    return _checked("".join(parts)) or ""


def _checked(prefix: str) -> str | None:
    """The prefix without percent-encoding; None if it is not valid."""
    decoded = unquote(prefix)
    return decoded if len(decoded) <= MAX_CHARACTERS and PREFIX.fullmatch(decoded) else None


def _is_ambiguous(prefix: str) -> bool:
    return prefix.split("/")[1] in ROUTES


def _relative(location: bytes, path: str) -> bytes:
    """The location of a redirect that only adds a slash, relative to the request's own address.

    So it does not contain host and prefix, which a server behind a proxy may not know.
    """
    url = urlsplit(location.decode("latin-1"))
    if unquote(url.path) != f"{path}/":
        return location
    relative = f"./{quote(path.rpartition('/')[2])}/"
    return (f"{relative}?{url.query}" if url.query else relative).encode("latin-1")
