"""Measures what a client of a real server notices while others keep it busy. The load comes from another process.

    python tests/fairness.py measures|prompts|greedy|hung|stop --json

* ``measures``: small requests while two visitors of the app measure a data set; their time divided by that alone. Also
  whether ``/health`` ever reports a problem meanwhile.
* ``prompts``: the time between two tokens of a stream while three clients send prompts of 2,000 tokens.
* ``greedy``: small requests while another client has 12 requests with 32 completions each in progress.
* ``hung``: the seconds until ``/health`` reports a pass that sleeps, and until it is well again after that.
* ``stop``: exit codes and seconds after SIGTERM at random moments while visitors measure.

The model has GPT-2's shape with ``--layers`` layers, ``--width`` wide, and random weights. The last line is JSON; the
exit code is 1 if a figure is beyond what ``docs/reliability.md`` promises.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from fairness_load import MODEL
from serving import ROOT, ServerProcess, save_checkpoint, serving
from waiting import wait_until

KEYS = {"small": "the key of small requests", "busy": "the key of the others"}
SMALL = {"model": MODEL, "prompt": "the cat", "max_tokens": 16, "min_tokens": 16}
STREAM = {"model": MODEL, "prompt": "the cat", "max_tokens": 150, "min_tokens": 150, "stream": True}
LIMITS = {"ratio": 3.0, "p99_ratio": 5.0, "p95_ratio": 5.0, "refused": 0, "unhealthy": 0, "reported_s": 30, "late": 0}
"""The largest value of each figure that is allowed."""


def small_requests(
    server: ServerProcess, key: str | None, seconds: float, least: int
) -> tuple[list[float], Counter[int]]:
    """Sends small requests one after the other; returns the seconds of those that were answered, and all statuses."""
    times, statuses = [], Counter[int]()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120, verify=False) as client:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at or statuses.total() < least:
            began = time.perf_counter()
            status = client.post("/v1/completions", json=SMALL).status_code
            statuses[status] += 1
            if status == 200:
                times.append(time.perf_counter() - began)
    return times, statuses


def gaps(server: ServerProcess, key: str, count: int) -> list[float]:
    """The seconds between two events of ``count`` streams."""
    found = []
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=120, verify=False
    ) as client:
        for _ in range(count):
            times = []
            with client.stream("POST", "/v1/completions", json=STREAM) as stream:
                for _ in stream.iter_raw():
                    times.append(time.perf_counter())
            # The first event waits for the prompt, and the last ones are not tokens.
            found += [later - earlier for earlier, later in pairwise(times[1:-1])]
    return found


@contextmanager
def load(kind: str, server: ServerProcess, key: str = "") -> Iterator[None]:
    """Keeps the server busy; see ``fairness_load.py``."""
    command = [sys.executable, str(ROOT / "tests" / "fairness_load.py"), kind, server.url, key]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready", "the load has ended"
        yield
    finally:
        process.kill()
        process.communicate()


def measures(server: ServerProcess, seconds: float) -> dict[str, Any]:
    """Small requests while two visitors measure."""
    small_requests(server, None, 2, 10)
    alone, _ = small_requests(server, None, seconds / 4, 20)
    with load("measures", server):
        under, statuses = small_requests(server, None, seconds, 20)
        unhealthy = sum(httpx.get(f"{server.url}/health", verify=False).status_code != 200 for _ in range(20))
    middle, before = statistics.median(under), statistics.median(alone)
    return {
        "alone_ms": 1e3 * before,
        "ms": 1e3 * middle,
        "ratio": middle / before,
        "ratio_of_p95": at(under, 0.95) / at(alone, 0.95),
        "requests": len(under),
        "refused": statuses.total() - statuses[200],
        "unhealthy": unhealthy,
    }


def prompts(server: ServerProcess, seconds: float) -> dict[str, Any]:
    """A stream while others send long prompts."""
    gaps(server, KEYS["small"], 1)
    alone = gaps(server, KEYS["small"], 3)
    with load("prompts", server, KEYS["busy"]):
        under = gaps(server, KEYS["small"], max(1, round(seconds / 5)))
    return {
        "alone_p50_ms": 1e3 * at(alone, 0.5),
        "alone_p99_ms": 1e3 * at(alone, 0.99),
        "p50_ms": 1e3 * at(under, 0.5),
        "p99_ms": 1e3 * at(under, 0.99),
        "longest_ms": 1e3 * max(under),
        "p99_ratio": at(under, 0.99) / at(alone, 0.99),
        "p99_to_alone_p50": at(under, 0.99) / at(alone, 0.5),
        "gaps": len(under),
    }


def greedy(server: ServerProcess, seconds: float) -> dict[str, Any]:
    """Small requests while another client has hundreds of completions in progress."""
    least = 4 + round(seconds)
    small_requests(server, KEYS["small"], seconds / 8, 2)
    alone, _ = small_requests(server, KEYS["small"], seconds / 4, least)
    with load("greedy", server, KEYS["busy"]):
        under, statuses = small_requests(server, KEYS["small"], seconds, least)
    return {
        "alone_p50_ms": 1e3 * at(alone, 0.5),
        "alone_p95_ms": 1e3 * at(alone, 0.95),
        "p50_ms": 1e3 * at(under, 0.5),
        "p95_ms": 1e3 * at(under, 0.95),
        "p95_ratio": at(under, 0.95) / at(alone, 0.95),
        "requests": statuses.total(),
        "refused": statuses.total() - statuses[200],
    }


def hung(folder: Path, work: Path) -> dict[str, Any]:
    """How long it takes until a pass that sleeps is reported."""
    file = work / "hang"
    with serving(folder, options=("--load",), real=True, program=("tests/hanging_server.py", str(file))) as server:
        file.touch()
        began = time.monotonic()
        with httpx.Client(base_url=server.url, timeout=1, verify=False) as client:
            with suppress(httpx.TimeoutException):
                client.post("/v1/completions", json=SMALL)
            wait_until(lambda: client.get("/health").status_code == 503, 90)
            reported_s = time.monotonic() - began
            file.unlink()
            wait_until(lambda: client.get("/health").status_code == 200, 30)
    return {"reported_s": reported_s}


def stop(folder: Path, data: Path, trials: int, drain_s: float = 3.0) -> dict[str, Any]:
    """SIGTERM at random moments while visitors measure."""
    codes, slowest, draw = Counter[int](), 0.0, random.Random(0)
    options = ("--app", "--data", str(data), "--drain-s", str(drain_s))
    for _ in range(trials):
        with serving(folder, options=options, real=True) as server, load("measures", server):
            time.sleep(3 * draw.random())
            began = time.monotonic()
            codes[server.stop(limit_s=60)] += 1
            slowest = max(slowest, time.monotonic() - began)
    return {"codes": dict(codes), "slowest_s": slowest, "late": trials - codes[0] + (slowest > drain_s + 5)}


def at(values: list[float], share: float) -> float:
    """A quantile of the values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def make(work: Path, layers: int, width: int) -> tuple[Path, Path, Path]:
    """A checkpoint, a file of problems and one of keys."""
    shape = {"n_layer": layers, "n_embd": width, "n_head": max(1, width // 64), "initializer_range": 0.05}
    folder = save_checkpoint(work / MODEL, positions=2304, **shape)
    problems = [
        {"question": f"{a} + {b} =", "steps": [str(a)], "answer": str(a + b)} for a in range(20) for b in range(20)
    ]
    data, keys = work / "sums.json", work / "keys"
    data.write_text(json.dumps(problems), encoding="utf-8")
    keys.write_text("".join(json.dumps({"name": name, "key": key}) + "\n" for name, key in KEYS.items()))
    return folder, data, keys


def run(kind: str, seconds: float = 30.0, layers: int = 4, width: int = 256, trials: int = 10) -> dict[str, Any]:
    """The figures of one kind."""
    with tempfile.TemporaryDirectory() as place:
        folder, data, keys = make(Path(place), layers, width)
        if kind == "hung":
            return hung(folder, Path(place))
        if kind == "stop":
            return stop(folder, data, trials)
        options = ("--app", "--data", str(data)) if kind == "measures" else ("--load", "--api-key-file", str(keys))
        with serving(folder, options=(*options, "--max-positions", "2304"), real=True) as server:
            return {"measures": measures, "prompts": prompts, "greedy": greedy}[kind](server, seconds)


def main() -> int:
    """Runs the program from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("measures", "prompts", "greedy", "hung", "stop"))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="has no effect: the last line is always JSON")
    given = parser.parse_args()
    result = run(given.kind, given.seconds, given.layers, given.width, given.trials)
    print(json.dumps({name: round(one, 3) if isinstance(one, float) else one for name, one in result.items()}))
    return int(any(result[name] > most for name, most in LIMITS.items() if name in result))


if __name__ == "__main__":
    sys.exit(main())
