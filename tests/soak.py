"""Uses a real server for a long time while its checkpoints are removed, broken, replaced and added.

    python tests/soak.py --minutes 60 --json

Clients send whole and streamed requests, sampled ones with seeds, log probabilities, thoughts, chats, wrong requests,
and requests that they abandon; they also list the models. Meanwhile other checkpoints appear, change, break and vanish
in the folder that the server offers, and the memory budget is too small for all of them. Every answer is compared with
that of ``load_reasoner``. The last line of output is JSON:

* ``wrong``: answers that are not right for any state that the checkpoint had lately (``first_wrong``: some of them);
* ``server_errors``: statuses from 500 on, and connections that broke, except errors of checkpoints that were broken on
  purpose (``injected_errors``);
* ``memory_growth``, ``descriptors_growth``: median over the last tenth of the time, relative to that over the first
  tenth after the warm-up, minus 1;
* ``requests``, ``minutes``; ``busy``: requests that got 429 since models in use left no memory.

The exit code is 1 if any of this is beyond what ``docs/reliability.md`` promises.
"""

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from asking_http import Connection
from making_checkpoints import BROKEN, NAMES, TOKENS, World
from serving import ServerProcess, serving
from tqdm import tqdm

CLIENTS = 6
PAUSE_S = 0.02
"""Mean pause of a client between two requests."""
CHANGES_S = (0.5, 4.0, 30.0)
"""Pauses between two changes of checkpoints: short ones, and some that leave time to notice the change."""
MODELS_IN_MEMORY = 4.4
MODEL_BYTES = 850_000
"""Weights and cache of one model, with the options below."""
OPTIONS = ("--slots", "4", "--max-positions", "256", "--memory-gb", str(MODELS_IN_MEMORY * MODEL_BYTES / 1e9))
TOLERANCE = 1e-3
"""Largest difference of a log probability, in nats: other requests in a pass change the last bits."""
KINDS = (
    *["greedy", "thoughts", "sampled", "logprobs", "stream", "chat", "trace"] * 4,
    *["models", "wrong", "gone"] * 2,
)
LIMITS = {"wrong": 0, "server_errors": 0, "memory_growth": 0.02, "descriptors_growth": 0.0, "exit_code": 0}


@dataclass
class Counts:
    """What happened so far."""

    kinds: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    """The states that answers were right for."""
    wrong: list[str] = field(default_factory=list)
    server_errors: list[str] = field(default_factory=list)
    injected_errors: int = 0
    busy: int = 0
    changes: int = 0


class Client:
    """Sends one request after another."""

    def __init__(self, address: tuple[str, int], world: World, counts: Counts, seed: int) -> None:
        self._address, self._world, self._counts = address, world, counts
        self._random, self._connection = random.Random(seed), Connection(*address)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Sends requests until it is over."""
        while not is_over():
            kind = self._random.choice(KINDS)
            self._counts.kinds[kind] += 1
            try:
                async with asyncio.timeout(120):
                    await self._one(kind)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                self._counts.server_errors.append(f"{kind}: {error!r}")
                self._connection.close()
            await asyncio.sleep(self._random.expovariate(1 / PAUSE_S))
        self._connection.close()

    async def _one(self, kind: str) -> None:
        if kind == "models":
            await self._list()
        elif kind == "wrong":
            await self._wrong()
        elif kind == "gone":
            await self._leave()
        else:
            await self._ask(kind)

    async def _ask(self, kind: str) -> None:
        """A valid request, whose answer must be that of a state that the checkpoint had lately."""
        name, prompt = self._random.choice(list(NAMES)), self._random.choice(self._world.prompts)
        asked = kind if kind in ("thoughts", "sampled", "logprobs") else "greedy"
        body = {"model": name, "max_tokens": TOKENS, **self._world.fields_of(name, asked)}
        path = {"chat": "/v1/chat/completions", "trace": "/v1/thoughts"}.get(kind, "/v1/completions")
        if kind == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["question" if kind == "trace" else "prompt"] = prompt
        if kind == "stream":
            body["stream"] = True
        began = time.monotonic()
        status, answer = await self._connection.post(path, json.dumps(body).encode())
        states = self._world.allowed(name, began)
        found = [state for state in states if self._fits(state, kind, asked, prompt, status, answer)]
        if found:
            self._counts.states[str(sorted(map(str, found))[0])] += 1
            self._counts.injected_errors += status == 500
        elif status == 429:
            self._counts.busy += 1
            await asyncio.sleep(0.1)
        elif status >= 500:
            self._counts.server_errors.append(f"{kind} {name} {sorted(map(str, states))}: {status} {answer[:300]!r}")
        else:
            self._counts.wrong.append(f"{kind} {name} {sorted(map(str, states))} {prompt}: {status} {answer[:600]!r}")

    def _fits(self, state: str | None, kind: str, asked: str, prompt: str, status: int, answer: bytes) -> bool:
        """Whether an answer is right for a state of the checkpoint."""
        if state is None or state == BROKEN:
            code = {None: (404, "model_not_found"), BROKEN: (500, "checkpoint_failed")}[state]
            return status == code[0] and json.loads(answer)["error"]["code"] == code[1]
        if status != 200:
            return False
        right = self._world.right[state, asked, prompt]
        if kind == "stream":
            return b"data: [DONE]" in answer and streamed(answer) == right.texts[0]
        values = json.loads(answer)
        if kind == "trace":
            return values["text"] == right.texts[0] and len(values["thoughts"]) == right.num_thoughts
        choices = values["choices"]
        texts = tuple(one["message"]["content"] if kind == "chat" else one["text"] for one in choices)
        if texts != right.texts:
            return False
        scores = choices[0]["logprobs"]["token_logprobs"] if kind == "logprobs" else []
        return all(
            math.isclose(one, other, abs_tol=TOLERANCE)
            for one, other in zip(scores, right.log_probabilities, strict=False)
        )

    async def _list(self) -> None:
        began = time.monotonic()
        status, answer = await self._connection.get("/v1/models")
        if status != 200:
            self._counts.server_errors.append(f"GET /v1/models: {status} {answer[:300]!r}")
            return
        listed = {one["id"] for one in json.loads(answer)["data"]}
        for name in NAMES:
            states = self._world.allowed(name, began)
            if (name in listed and states == {None}) or (name not in listed and None not in states):
                self._counts.wrong.append(f"GET /v1/models: {sorted(listed)}, but {name} is {states}")

    async def _wrong(self) -> None:
        body, expected = self._random.choice(
            [
                ({"model": "stable", "prompt": "a", "max_tokens": "8"}, 400),
                ({"model": "stable", "prompt": "a", "n_thought": 3}, 400),
                ({"model": "../stable", "prompt": "a"}, 404),
                ({"model": f"none-{self._random.random()}", "prompt": "a"}, 404),
            ]
        )
        status, answer = await self._connection.post("/v1/completions", json.dumps(body).encode())
        if status >= 500:
            self._counts.server_errors.append(f"wrong: {status} {answer[:300]!r}")
        elif status != expected:
            self._counts.wrong.append(f"{body}: {status} {answer[:300]!r}")

    async def _leave(self) -> None:
        """Begins a stream and closes the connection in its middle."""
        reader, writer = await asyncio.open_connection(*self._address)
        body = json.dumps({"model": "changing", "prompt": "the cat", "max_tokens": 150, "stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await reader.read(self._random.choice([1, 400]))
        writer.transport.abort()


def streamed(answer: bytes) -> str:
    """The text of a stream's events."""
    events = [line.removeprefix(b"data: ") for line in answer.split(b"\n") if line.startswith(b"data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


class Gauge:
    """Memory and descriptors of a process, once a second."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc", str(pid))
        self.samples: list[tuple[int, int]] = []

    async def run(self, is_over: Callable[[], bool], bar: tqdm) -> None:
        """Samples until it is over."""
        while not is_over():
            await asyncio.sleep(1.0)
            pages = int((self._folder / "statm").read_text(encoding="ascii").split()[1])
            self.samples.append((pages * 4096, len(list((self._folder / "fd").iterdir()))))
            bar.update(min(1.0, bar.total - bar.n))

    def growth(self, which: int, warm_up: float) -> float:
        """Median over the last tenth, relative to that over the first tenth after the warm-up, minus 1."""
        values = [sample[which] for sample in self.samples][int(len(self.samples) * warm_up) :]
        tenth = max(1, len(values) // 10)
        return round(median(values[-tenth:]) / median(values[:tenth]) - 1, 4)


async def change_checkpoints(world: World, counts: Counts, is_over: Callable[[], bool], quick: bool) -> None:
    """Changes checkpoints until it is over."""
    generator = random.Random(1)
    while True:
        pause = CHANGES_S[0] if quick else generator.choice(CHANGES_S) * (0.5 + generator.random())
        changes_at = time.monotonic() + pause
        while time.monotonic() < changes_at:
            if is_over():
                return
            await asyncio.sleep(min(0.1, max(0.0, changes_at - time.monotonic())))
        await asyncio.to_thread(world.change)
        counts.changes += 1


async def use(
    server: ServerProcess, world: World, seconds: float, is_enough: Callable[[Counts], bool] = lambda counts: False
) -> dict[str, Any]:
    """Uses a server for this time, or until these counts are enough; returns the figures."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    counts, gauge, ends = Counts(), Gauge(server.process.pid), time.monotonic() + seconds

    def is_over() -> bool:
        return time.monotonic() >= ends or is_enough(counts)

    clients = [Client((host, int(port)), world, counts, seed) for seed in range(CLIENTS)]
    with tqdm(total=round(seconds), unit="s", disable=None, desc="soak") as bar:
        work = [client.run(is_over) for client in clients]
        changing = change_checkpoints(world, counts, is_over, quick=seconds <= 60)
        await asyncio.gather(*work, gauge.run(is_over, bar), changing)
    return {
        "wrong": len(counts.wrong),
        "server_errors": len(counts.server_errors),
        "memory_growth": gauge.growth(0, 0.1),
        "descriptors_growth": gauge.growth(1, 0.1),
        "requests": sum(counts.kinds.values()),
        "minutes": round(seconds / 60, 2),
        "busy": counts.busy,
        "changes": counts.changes,
        "injected_errors": counts.injected_errors,
        "memory_mb": round(gauge.samples[-1][0] / 1e6, 1),
        "descriptors": gauge.samples[-1][1],
        "kinds": dict(counts.kinds),
        "right_for": dict(counts.states),
        "first_wrong": counts.wrong[:3],
        "first_server_errors": counts.server_errors[:3],
    }


def soak(folder: Path, seconds: float, log: Path | None = None) -> dict[str, Any]:
    """Starts a server and uses it. ``log``: where to write the server's log."""
    world = World(folder)
    with serving(world.root, options=OPTIONS, real=True) as server:
        result = asyncio.run(use(server, world, seconds))
        result["internal_errors"] = sum("Traceback" in line for line in server.lines)
        result["exit_code"] = server.stop()
        if log is not None:
            log.write_text(server.log, encoding="utf-8")
    return result


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    parser.add_argument("--log", type=Path, help="file for the server's log")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), arguments.minutes * 60, arguments.log)
    if not arguments.json:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))
    print(json.dumps(result))
    return 0 if all(result[name] <= limit for name, limit in LIMITS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
