"""SIGTERM at random moments: the server must end with exit code 0 within ``--drain-s`` and five seconds.

``python tests/random_sigterm.py --times 20 --json`` starts real servers one after the other. Half of them get the
signal while they start (from the moment at which Python has begun to run the server's code), the others while clients
ask for streams, whole answers and thoughts. The last line is a JSON object, and the exit code is 0 if all servers ended
in time. The test suite runs a smaller form.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from serving import ServerProcess, save_checkpoint, starting

DRAIN_S = (1, 4)
"""Values of ``--drain-s``: shorter and longer than most requests."""
STARTING_S, SERVING_S = 8.0, 2.0
"""Longest time until the signal, from the beginning of the start and from the first request."""
FORKED_S = 1.0
"""Longest time until the signal while a forked server (``real=False``) starts, which has imported everything."""
BODY = {"model": "coconut", "prompt": "a", "max_tokens": 200, "min_tokens": 200}
REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {**BODY, "stream": True, "n": 4}),
    ("/v1/completions", {**BODY, "n": 4}),
    ("/v1/thoughts", {"model": "coconut", "question": "a", "max_tokens": 100}),
)


def handles_signals(process: Any) -> bool:
    """Whether the process has a handler for SIGTERM."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return False
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def load(server: ServerProcess, stops: threading.Event) -> list[threading.Thread]:
    """Threads that ask until the server is gone."""

    def ask(number: int) -> None:
        path, body = REQUESTS[number % len(REQUESTS)]
        with server.client() as client:
            while not stops.is_set():
                try:
                    with client.stream("POST", path, json=body) as answer:
                        answer.read()
                except httpx.TransportError:
                    # The server has ended, or ends and closes the connection.
                    time.sleep(0.02)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(6)]
    for one in threads:
        one.start()
    return threads


def trial(folder: Path, draws: random.Random, while_starting: bool, real: bool = True) -> dict[str, Any]:
    """Starts a server, sends the signal, and returns when and how it ended."""
    drain_s, stops = draws.choice(DRAIN_S), threading.Event()
    options = ("--drain-s", str(drain_s), *(("--load",) if draws.random() < 0.5 else ()))
    with starting(folder, options=options, real=real) as server:
        while not handles_signals(server.process):
            assert server.process.poll() is None, server.log
            time.sleep(0.005)
        threads: list[threading.Thread] = []
        if not while_starting:
            server.wait_until_ready()
            threads = load(server, stops)
        starting_s = STARTING_S if real else FORKED_S
        after_s = draws.uniform(0, starting_s if while_starting else SERVING_S)
        time.sleep(after_s)
        began = time.monotonic()
        code = server.stop(limit_s=drain_s + 30)
        took_s = time.monotonic() - began
        stops.set()
        for one in threads:
            one.join(10)
        told = "Traceback" in server.log
    phase = "starting" if while_starting else "serving"
    return {
        "phase": phase,
        "after_s": round(after_s, 2),
        "drain_s": drain_s,
        "code": code,
        "took_s": round(took_s, 2),
        "traceback": told,
    }


def holds(one: dict[str, Any]) -> bool:
    """Whether a server ended as it should."""
    return one["code"] == 0 and one["took_s"] <= one["drain_s"] + 5 and not one["traceback"]


def main() -> int:
    """Runs all trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print only the last line")
    options = parser.parse_args()
    draws, trials = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as place:
        folder = save_checkpoint(Path(place) / "coconut")
        for number in range(options.times):
            trials.append(trial(folder, draws, while_starting=number % 2 == 0))
            if not options.json:
                sys.stderr.write(f"{json.dumps(trials[-1])}\n")
    failed = [one for one in trials if not holds(one)]
    longest = max(one["took_s"] - one["drain_s"] for one in trials)
    print(json.dumps({"times": len(trials), "failed": failed, "longest_after_drain_s": round(longest, 2)}))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
