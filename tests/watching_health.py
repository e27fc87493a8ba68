"""Asks ``/health`` of a server all the time, from a process of its own, until its standard input is closed.

    python tests/watching_health.py HOST PORT

Each answer that takes longer than 100 ms is a line of output: when the question was sent (``time.monotonic``) and the
seconds until the answer. The last line is a JSON object: number of answers, the worst, and how late this process itself
was woken from its pauses at worst, which shows how busy the machine was.
"""

import json
import select
import socket
import sys
import time

PAUSE_S = 0.004
SLOW_S = 0.1
LIMIT_S = 120.0


def main() -> None:
    """Command line."""
    address = sys.argv[1], int(sys.argv[2])
    request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    waits: list[float] = []
    late, failed = 0.0, 0
    connection = socket.create_connection(address, LIMIT_S)
    while not select.select([sys.stdin], [], [], 0)[0]:
        began = time.monotonic()
        try:
            connection.sendall(request)
            answer = connection.recv(65536)
            while answer and not answer.endswith(b"}"):
                answer += connection.recv(65536)
        except OSError:
            answer = b""
        ended = time.monotonic()
        waits.append(ended - began)
        if ended - began > SLOW_S:
            print(f"{began:.4f} {ended - began:.4f}", flush=True)
        if not answer.startswith(b"HTTP/1.1 200"):
            failed += 1
            connection.close()
            connection = socket.create_connection(address, LIMIT_S)
        time.sleep(PAUSE_S)
        late = max(late, time.monotonic() - ended - PAUSE_S)
    waits.sort()
    numbers = {"answers": len(waits), "failed": failed, "late_ms": round(late * 1e3, 1)}
    shares = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    found = {name: round(waits[int(share * len(waits))] * 1e3, 1) for name, share in shares.items()}
    print(json.dumps({**numbers, **found, "worst_ms": round(waits[-1] * 1e3, 1)}), flush=True)


if __name__ == "__main__":
    main()
