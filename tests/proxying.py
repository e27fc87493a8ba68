"""A reverse proxy in this process, which offers a server under a prefix, as nginx, Traefik or JupyterHub do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import urlsplit

CHUNK = 65536


class LateEnds:
    """Holds the end of an event stream until the page has asked for its next event, or for five seconds."""

    def __init__(self) -> None:
        self.holding, self.asked = Event(), Event()

    def hold(self) -> None:
        """Waits for the next event."""
        self.asked.clear()
        self.holding.set()
        self.asked.wait(5)
        # The answer to that request must reach the page before the end of the stream does.
        time.sleep(0.5)
        self.holding.clear()


@contextmanager
def proxying(
    target: str,
    prefix: str,
    *,
    strips: bool,
    sends: str | None = None,
    keeps_host: bool = True,
    stream_pause_s: float = 0,
    late: "LateEnds | None" = None,
) -> Iterator[str]:
    """Yields the address of the proxy, without the prefix. Everything outside of the prefix is 404.

    Args:
        target: address of the server.
        prefix: path under which the proxy offers it.
        strips: whether the proxy removes the prefix from paths.
        sends: value of ``X-Forwarded-Prefix``; None: the header is not sent.
        keeps_host: whether the server gets the ``Host`` that the browser sent, or its own.
        stream_pause_s: seconds that the proxy waits before it forwards the next part of an event stream.
        late: makes the proxy forward the ends of event streams late.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            if not (self.path == prefix or self.path.startswith(f"{prefix}/")):
                self.send_response(404, "outside of the prefix")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            headers |= {} if sends is None else {"X-Forwarded-Prefix": sends}
            if not keeps_host:
                headers["Host"] = "127.0.0.2:1"
            connection = HTTPConnection(urlsplit(target).netloc, timeout=120)
            connection.request(self.command, self.path.removeprefix(prefix * strips) or "/", body, headers)
            self.answer(connection)

        do_GET = do_HEAD = do_POST = do_OPTIONS = forward

        def answer(self, connection: HTTPConnection) -> None:
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            # The end of the body is the end of the connection, so that streams pass unchanged.
            self.send_header("Connection", "close")
            self.end_headers()
            pause_s = stream_pause_s if answer.getheader("Content-Type", "").startswith("text/event-stream") else 0
            try:
                while part := answer.read1(CHUNK):
                    time.sleep(pause_s)
                    if late is not None and b"close_stream" in part:
                        late.hold()
                    self.wfile.write(part)
                    self.wfile.flush()
            except (OSError, HTTPException):
                pass
            connection.close()
            if late is not None and self.path.endswith("/queue/join"):
                late.asked.set()

        def log_message(self, *message: object) -> None:
            """Logs nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
