"""Thousands of clients that send nothing, or a byte at a time, to a server that may open few files.

``python tests/slow_connections.py --json`` starts a server that may have 1,024 open files, opens 2,000 connections of
five kinds (see ``KINDS``), opens each again a second after the server closed it, and asks for ``/health`` all the
while, each time on a new connection, as a load balancer does. The last line is a JSON object; the exit code is 0 if all
figures are within ``BOUNDS``. The test suite runs a smaller form,
without the kind and the figure whose limits a busy machine may exceed.
"""

import argparse
import json
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ASKS = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
KINDS: dict[str, tuple[bytes, bytes]] = {
    "silent": (b"", b""),
    "half a head": (HEAD, b""),
    "a head byte by byte": (HEAD + b"X-Long: ", b"x"),
    "a body byte by byte": (HEAD + b"Content-Length: 100000\r\n\r\n{", b" "),
    "idle after an answer": (ASKS, b""),
}
"""By kind of connection: what it sends at first, and what it then sends every half second."""
DRIP_S = 0.5
REOPEN_S = 1.0
BOUNDS = {"health_unanswered": 0, "health_p99_ms": 1000, "longest_open_s": 15, "still_open": 0, "log_lines": 100}


@dataclass
class Attack:
    """Connections that keep the server waiting."""

    address: tuple[str, int]
    num: int
    reopens_s: float
    """Seconds during which a connection that the server closed is opened again."""
    kinds: Sequence[str] = tuple(KINDS)
    num_opened: int = 0
    longest_open_s: float = 0.0
    open: dict[socket.socket, tuple[str, float]] = field(default_factory=dict)
    """Kind of each open connection, and when it was opened."""

    def run(self, limit_s: float) -> dict[str, float]:
        """Opens the connections; returns figures when the server has closed all, or after ``limit_s`` seconds."""
        self._selector, began = selectors.DefaultSelector(), time.monotonic()
        drips_at, closed = began, deque[tuple[float, str]]()
        for index in range(self.num):
            self._open(self.kinds[index % len(self.kinds)])
        while (self.open or closed) and time.monotonic() < began + limit_s:
            for key, _ in self._selector.select(0.05):
                kind = self._ended(key.fileobj)
                if kind is not None:
                    closed.append((time.monotonic(), kind))
            while closed and time.monotonic() >= closed[0][0] + REOPEN_S:
                _, kind = closed.popleft()
                if time.monotonic() < began + self.reopens_s:
                    self._open(kind)
            if time.monotonic() >= drips_at + DRIP_S:
                drips_at = time.monotonic()
                for one, (kind, _) in list(self.open.items()):
                    self._send(one, KINDS[kind][1])
        still_open, now = len(self.open), time.monotonic()
        for one, (_, opened) in self.open.items():
            self.longest_open_s = max(self.longest_open_s, now - opened)
            one.close()
        return {"opened": self.num_opened, "longest_open_s": round(self.longest_open_s, 1), "still_open": still_open}

    def _open(self, kind: str) -> None:
        one = socket.create_connection(self.address)
        one.setblocking(False)
        self._selector.register(one, selectors.EVENT_READ)
        self.open[one] = (kind, time.monotonic())
        self.num_opened += 1
        self._send(one, KINDS[kind][0])

    def _send(self, one: socket.socket, data: bytes) -> None:
        try:
            if data:
                one.send(data)
        except OSError:
            # The server has closed it; the selector reports that next.
            return

    def _ended(self, one: Any) -> str | None:
        """The kind of a connection that has ended; None if it has not."""
        try:
            if one.recv(1 << 16):
                return None
        except BlockingIOError:
            return None
        except OSError:
            pass
        self._selector.unregister(one)
        one.close()
        kind, opened = self.open.pop(one)
        self.longest_open_s = max(self.longest_open_s, time.monotonic() - opened)
        return kind


def ask_health(address: tuple[str, int], limit_s: float = 10.0) -> float | None:
    """Milliseconds until ``/health`` answers on a new connection; None if it does not answer 200."""
    began = time.monotonic()
    try:
        with socket.create_connection(address, timeout=limit_s) as one:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: one.recv(4096), b""))
    except OSError:
        return None
    return (time.monotonic() - began) * 1000 if answer.startswith(b"HTTP/1.1 200 ") else None


def attack(
    server: Any, num: int, reopens_s: float, limit_s: float, kinds: Sequence[str] = tuple(KINDS)
) -> dict[str, Any]:
    """Attacks a running server (``serving.ServerProcess``) from another process, and returns the figures."""
    parts, num_lines = urlsplit(server.url), len(server.lines)
    address = (str(parts.hostname), int(parts.port or 0))
    command = [sys.executable, __file__, "--attack", *map(str, (*address, num, reopens_s, limit_s)), *kinds]
    asked: list[float | None] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
        while attacker.poll() is None:
            asked.append(ask_health(address))
            time.sleep(0.02)
        assert attacker.stdout is not None
        attacked = json.loads(attacker.stdout.read())
    answered = [one for one in asked if one is not None]
    return {
        "connections": num,
        **attacked,
        "health_asked": len(asked),
        "health_unanswered": len(asked) - len(answered),
        "health_p99_ms": round(quantiles(answered, n=100)[-1], 1) if len(answered) > 1 else None,
        "health_max_ms": round(max(answered), 1) if answered else None,
        "log_lines": sum("serve.access" not in line for line in server.lines[num_lines:]),
    }


def holds(figures: dict[str, Any]) -> bool:
    """Whether all figures are within their bounds."""
    return all(figures[name] is not None and figures[name] <= bound for name, bound in BOUNDS.items())


def main() -> int:
    """Runs the whole attack."""
    if sys.argv[1:2] == ["--attack"]:
        host, port, num, reopens_s, limit_s, *kinds = sys.argv[2:]
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, int(num) + 500), hard))
        print(json.dumps(Attack((host, int(port)), int(num), float(reopens_s), kinds).run(float(limit_s))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--descriptors", type=int, default=1024, help="open files that the server may have")
    parser.add_argument("--seconds", type=float, default=20, help="how long connections are opened again")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    options = parser.parse_args()
    from serving import save_checkpoint, serving

    with tempfile.TemporaryDirectory() as place:
        checkpoint = save_checkpoint(Path(place) / "coconut")
        with serving(checkpoint, options=("--load",), descriptors=options.descriptors) as server:
            figures = attack(server, options.connections, options.seconds, limit_s=options.seconds + 40)
            figures["exit_code"] = server.stop()
            if not options.json:
                sys.stderr.write(server.log)
    figures["descriptors"] = options.descriptors
    print(json.dumps(figures))
    return 0 if holds(figures) and figures["exit_code"] == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
