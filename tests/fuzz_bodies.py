"""Sends a real server bodies of every kind, and measures whether anyone notices.

    python tests/fuzz_bodies.py --bodies 100000 --json

The server has four models, one of which has 13 tokens. Bodies are valid requests, requests that are changed at random,
wrongly typed, nested, or huge, and requests for the largest answers (``making_bodies.py``). Meanwhile another process
asks ``/health`` all the time, and other clients send requests whose answers are known. The last line of output is JSON:

* ``worst_health_ms``: the longest wait for ``/health``; ``late_ms`` beside it: the longest time for which the asking
  process itself was not woken, since the machine was busy;
* ``memory_left_mb``: resident memory of the server at the end minus that before, after a warm-up and a pause;
* ``others_failed``: known requests that got another answer or none;
* ``wrong``: bodies that got no answer, or one with a status or a shape that it must not have. They are written to
  ``--out``, one file each, and the same ``--seed`` makes them again.

The exit code is 1 if there is a wrong answer, or if a figure is beyond what ``docs/reliability.md`` promises.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from asking_http import Connection
from making_bodies import HEAVY, LIGHT, Body, body_of
from serving import ServerProcess, save_checkpoint, serving, thirteen_tokens
from tqdm import tqdm

CLIENTS = 6
STATUSES = {200, 400, 404, 408, 413, 415, 429}
"""Statuses that a body may get; 429 only while others fill the queue."""
KNOWN = [("coconut", "the cat", 24), ("thirteen", "b c d", 12), ("no_cot", "a b", 24)]
"""Model, prompt and number of tokens of the requests of other clients."""
LIMITS = {"wrong": 0, "others_failed": 0, "health_failed": 0, "worst_health_ms": 250, "memory_left_mb": 64}


class Fuzz:
    """Bodies for one server."""

    def __init__(self, server: ServerProcess, seed: int, out: Path, heavy: float, only: str | None) -> None:
        self._seed, self._out, self._heavy, self._only = seed, out, heavy, only
        host, _, port = server.url.removeprefix("http://").partition(":")
        self._address = host, int(port)
        self.statuses: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.others_failed: list[str] = []
        self.num_others = 0
        self.times: list[tuple[float, float, int, str]] = []
        """When each body was sent and answered (``time.monotonic``), its number and kind."""
        self._expected: dict[str, Any] = {}

    async def run(self, first: int, count: int, most_s: float = float("inf")) -> int:
        """Sends these bodies, and the known requests, until ``most_s`` seconds are over; returns how many bodies."""
        ends, before = time.monotonic() + most_s, len(self.times)
        numbers = takewhile(lambda _: time.monotonic() < ends, range(first, first + count))
        with tqdm(total=count, desc="bodies", mininterval=2) as bar:
            others = [asyncio.ensure_future(self._other(number)) for number in range(2)]
            await asyncio.gather(*(self._client(numbers, bar) for _ in range(CLIENTS)))
            for one in others:
                one.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        return len(self.times) - before

    async def _client(self, numbers: Any, bar: Any) -> None:
        connection = Connection(*self._address)
        for number in numbers:
            body = body_of(self._seed, number, self._heavy, self._only)
            self.kinds[body.kind] += 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(400):
                    status, answer = await connection.post(body.path, body.content)
                fault = fault_of(status, answer)
                self.statuses[status] += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
                fault = repr(error)
                connection.close()
            self.times.append((began, time.monotonic(), number, body.kind))
            if fault is not None:
                self._keep(number, body, fault)
            bar.update()
        connection.close()

    async def _other(self, number: int) -> None:
        """Sends known requests, one after another; every answer must be the first one."""
        with closing(Connection(*self._address)) as connection:
            while True:
                for model, prompt, count in KNOWN:
                    fields = {"model": model, "prompt": prompt, "max_tokens": count, "min_tokens": count, "logprobs": 2}
                    self.num_others += 1
                    try:
                        status, answer = await connection.post("/v1/completions", json.dumps(fields).encode())
                        shown = known_of(answer) if status == 200 else f"{status} {answer[:500]!r}"
                    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                        shown = repr(error)
                        connection.close()
                    if self._expected.setdefault(model, shown) != shown or isinstance(shown, str):
                        self.others_failed.append(f"{model}: {shown}, expected {self._expected[model]}")
                    await asyncio.sleep(0.02)

    def _keep(self, number: int, body: Body, fault: str) -> None:
        """Writes a body with a wrong answer to a file."""
        name = f"{body.path.rpartition('/')[2]}-{self._seed}-{number}.body"
        self._out.mkdir(parents=True, exist_ok=True)
        (self._out / name).write_bytes(body.content)
        self.wrong.append(f"{name} ({body.kind}): {fault[:300]}")

    def slowest(self, lines: list[str]) -> list[str]:
        """For the slowest answers of ``/health``: the wait, and the bodies that were with the server then."""
        shown = []
        for began, wait in sorted((tuple(map(float, line.split())) for line in lines), key=lambda one: -one[1])[:8]:
            others = [f"{n} {kind}" for start, end, n, kind in self.times if start < began + wait and end > began]
            shown.append(f"{wait * 1e3:.0f} ms: {', '.join(others)}")
        return shown


def fault_of(status: int, answer: bytes) -> str | None:
    """What is wrong with an answer; None: nothing."""
    if status not in STATUSES:
        return f"status {status}: {answer[:300]!r}"
    if answer.startswith((b"data: ", b": ")) and status == 200:
        ends = answer.endswith(b"data: [DONE]\n\n") and b'"type":"server_error"' not in answer
        return None if ends else f"the stream ended with {answer[-300:]!r}"
    try:
        found = json.loads(answer)
    except ValueError:
        return f"status {status}, no JSON: {answer[:300]!r}"
    if status != 200:
        keys = set(found.get("error", ()))
        short = len(answer) < 2000
        return None if keys == {"message", "type", "param", "code"} and short else f"status {status}: {answer[:300]!r}"
    return None if found.get("usage") else f"no usage: {answer[:300]!r}"


def known_of(answer: bytes) -> Any:
    """What must be the same in every answer to a request. The last digits of log probabilities depend on the batch."""
    (choice,) = json.loads(answer)["choices"]
    scored = choice["logprobs"]
    likeliest = [list(one) for one in scored["top_logprobs"]]
    return choice["text"], scored["tokens"], [round(one, 2) for one in scored["token_logprobs"]], likeliest


@contextmanager
def watching(server: ServerProcess) -> Any:
    """Asks ``/health`` from another process; yields a list that gets the lines of its output at the end."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    command = [sys.executable, str(Path(__file__).with_name("watching_health.py")), host, port]
    lines: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield lines
        finally:
            lines += process.communicate()[0].splitlines()


def memory_mb(server: ServerProcess) -> float:
    """Resident memory of the server, in MB (1e6 bytes)."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6


def checkpoints(folder: Path) -> list[Path]:
    """Four models: of bytes, without thoughts, with 13 tokens, and with a long context."""
    made = [save_checkpoint(folder / "coconut"), save_checkpoint(folder / "no_cot", "no_cot")]
    made.append(save_checkpoint(folder / "thirteen", tokenizer=thirteen_tokens()))
    return [*made, save_checkpoint(folder / "long", positions=2048)]


def run_fuzz(
    server: ServerProcess, fuzz: Fuzz, count: int, warm_up: int, most_s: float = float("inf")
) -> dict[str, Any]:
    """Sends bodies to a running server; returns the figures."""
    # Numbers of the warm-up are negative, and a fault in one of these counts too.
    asyncio.run(fuzz.run(-warm_up, warm_up))
    time.sleep(2 if warm_up > 50 else 0)
    before, began = memory_mb(server), time.monotonic()
    with watching(server) as lines:
        count = asyncio.run(fuzz.run(0, count, most_s))
    seconds = time.monotonic() - began
    time.sleep(3 if count > 1000 else 0.2)
    health = json.loads(lines[-1])
    return {
        "bodies": count,
        "seconds": round(seconds, 1),
        "worst_health_ms": health["worst_ms"],
        "health": health,
        "health_failed": health["failed"],
        "memory_left_mb": round(memory_mb(server) - before, 1),
        "memory_mb": round(before, 1),
        "others": fuzz.num_others,
        "others_failed": len(fuzz.others_failed),
        "wrong": len(fuzz.wrong),
        "first_wrong": fuzz.wrong[:5],
        "first_others": fuzz.others_failed[:2],
        "slowest": fuzz.slowest(lines[:-1]),
        "statuses": dict(sorted(fuzz.statuses.items())),
        "kinds": dict(sorted(fuzz.kinds.items())),
    }


def holds(result: dict[str, Any]) -> bool:
    """Whether all figures are within what is promised."""
    return all(result[name] <= most for name, most in LIMITS.items())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heavy", type=float, default=0.02, help="share of bodies of up to 1 MiB and largest answers")
    parser.add_argument("--only", choices=[*LIGHT, *HEAVY], help="send only bodies of this kind")
    parser.add_argument("--warm-up", type=int, default=300, help="bodies before the memory is measured")
    parser.add_argument("--out", type=Path, default=Path("outputs/fuzz_bodies"), help="folder of bodies with faults")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="send no further bodies after this time")
    parser.add_argument("--json", action="store_true", help="print only the line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = ("--slots", "8", "--load")
        with serving(*checkpoints(Path(folder)), options=options, real=True) as server:
            fuzz = Fuzz(server, arguments.seed, arguments.out, arguments.heavy, arguments.only)
            figures = run_fuzz(server, fuzz, arguments.bodies, arguments.warm_up, arguments.seconds)
            result = {"seed": arguments.seed, **figures}
            result["tracebacks"] = server.log.count("Traceback")
            if result["tracebacks"] and not arguments.json:
                print(server.log[-6000:])
    if not arguments.json:
        print(json.dumps(result, indent=2))
    print(json.dumps(result))
    return 0 if holds(result) else 1


if __name__ == "__main__":
    sys.exit(main())
