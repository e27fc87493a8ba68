"""Two servers behind nginx, with the project's own configuration: an error of one never becomes an error of the other.

    python tests/behind_nginx.py --seconds 60 --json

Needs nginx (`apt-get install nginx-light`). ``docs/nginx.conf`` is used as it is, with other ports. While clients send
whole and streamed requests, another client asks for a checkpoint that cannot be loaded and sends large bodies with a
wrong key; and again and again one of the servers gets SIGKILL and is started anew. The last line of output is JSON:

* ``bad_gateway``: answers with status 502, to any client;
* ``failed``: requests of the first clients that got an error before their first byte (``first_failed``: some of them);
* ``wrong``: answers that are not those of ``load_reasoner``;
* ``cut``: answers that a killed server had begun to send and could not end: all that may be lost.

The exit code is 1 if any of the first three is not 0.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asking_http import Connection
from serving import ROOT, ServerProcess, save_checkpoint, serving
from soak import streamed
from tqdm import tqdm

from coconut_ds import load_reasoner

KEY = "a key"
PROMPTS = ("the cat", "a b", "é€😀", "1 + 2 =")
CLIENTS = 6
HEADERS = f"Authorization: Bearer {KEY}\r\n"
KILL_S = 6.0
"""Seconds between two kills; a server needs a few of them to start."""


@contextmanager
def nginx(folder: Path, ports: list[int]) -> Iterator[int]:
    """nginx in front of servers on two ports; yields its own port."""
    own = free_port()
    text = (ROOT / "docs" / "nginx.conf").read_text(encoding="utf-8")
    for old, new in zip((8001, 8002, 8000), (*ports, own), strict=True):
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    text = re.sub(r"/tmp/coconut-nginx", str(folder / "nginx"), text)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    process = subprocess.Popen(command, stderr=(folder / "nginx.log").open("w"))
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", own)) == 0:
                    break
            time.sleep(0.02)
        yield own
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    """A port on which no server listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Traffic:
    """What clients send, and what they get."""

    def __init__(self, port: int, right: dict[str, str]) -> None:
        self._address, self._right = ("127.0.0.1", port), right
        self.statuses: Counter[int] = Counter()
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self.cut = self.requests = self.hostile = 0

    async def use(self, ends: float, seed: int) -> None:
        """A client with valid requests."""
        generator, connection = random.Random(seed), Connection(*self._address)
        while time.monotonic() < ends:
            prompt, stream = generator.choice(PROMPTS), generator.random() < 0.3
            body = {"model": "good", "prompt": prompt, "max_tokens": 60, "stream": stream}
            self.requests += 1
            try:
                async with asyncio.timeout(60):
                    status, answer = await connection.post("/v1/completions", json.dumps(body).encode(), HEADERS)
            except (OSError, EOFError) as error:
                connection.close()
                # A whole answer has begun if its head, which has its length, has arrived.
                if stream or getattr(error, "expected", None) is not None:
                    self.cut += 1
                else:
                    self.failed.append(repr(error))
                continue
            self.statuses[status] += 1
            if status != 200:
                self.failed.append(f"{status} {answer[:200]!r}")
            elif stream and b"data: [DONE]" not in answer:
                self.cut += 1
            elif (streamed(answer) if stream else json.loads(answer)["choices"][0]["text"]) != self._right[prompt]:
                self.wrong.append(f"{prompt}: {answer[:300]!r}")
            await asyncio.sleep(0.01)
        connection.close()

    async def offend(self, ends: float) -> None:
        """A client that asks for a broken checkpoint, and sends large bodies that are refused before they are read."""
        connection = Connection(*self._address)
        large = json.dumps({"model": "good", "prompt": "x" * 900_000}).encode()
        small = json.dumps({"model": "bad", "prompt": "a"}).encode()
        while time.monotonic() < ends:
            for body, headers in ((small, HEADERS), (large, "Authorization: Bearer wrong\r\n"), (large, HEADERS)):
                self.hostile += 1
                try:
                    status, _ = await connection.post("/v1/completions", body, headers)
                    self.statuses[status] += 1
                except (OSError, EOFError):
                    connection.close()
            await asyncio.sleep(0.05)
        connection.close()


def run(folder: Path, seconds: float, real: bool = True) -> dict[str, Any]:
    """Runs everything; returns the figures."""
    good, bad = save_checkpoint(folder / "models" / "good"), save_checkpoint(folder / "models" / "bad")
    right = {one.question: one.text for one in load_reasoner(good).generate(list(PROMPTS), max_new_tokens=60)}
    weights = bad / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100:-90] = b"0123456789"
    weights.write_bytes(data)
    ports = [free_port(), free_port()]

    def start(port: int):
        return serving(folder / "models", key=KEY, options=("--slots", "4", "--port", str(port)), real=real)

    with start(ports[0]) as first, start(ports[1]) as second, nginx(folder, ports) as port:
        traffic = Traffic(port, right)
        kills = asyncio.run(_use(traffic, seconds, [first, second], ports, start))
    return {
        "bad_gateway": traffic.statuses[502],
        "failed": len(traffic.failed),
        "wrong": len(traffic.wrong),
        "cut": traffic.cut,
        "requests": traffic.requests,
        "hostile_requests": traffic.hostile,
        "kills": kills,
        "statuses": dict(traffic.statuses),
        "first_failed": traffic.failed[:3],
        "first_wrong": traffic.wrong[:3],
    }


async def _use(traffic: Traffic, seconds: float, servers: list[ServerProcess], ports: list[int], start: Any) -> int:
    """Sends requests, and kills one server after the other; returns how often."""
    ends = time.monotonic() + seconds
    clients = [asyncio.create_task(traffic.use(ends, seed)) for seed in range(CLIENTS)]
    clients.append(asyncio.create_task(traffic.offend(ends)))
    started, kills = [], 0
    with tqdm(total=round(seconds), unit="s", disable=None, desc="behind nginx") as bar:
        while time.monotonic() + KILL_S / 2 < ends:
            await asyncio.sleep(min(KILL_S / 2, seconds / 3))
            bar.update(max(0, round(seconds - (ends - time.monotonic())) - bar.n))
            which = kills % 2
            servers[which].process.kill()
            kills += 1
            again = start(ports[which])
            servers[which] = await asyncio.to_thread(again.__enter__)
            started.append(again)
    await asyncio.gather(*clients)
    for again in started:
        again.__exit__(None, None, None)
    return kills


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    arguments = parser.parse_args()
    if shutil.which("nginx") is None:
        sys.stderr.write("error: nginx is not installed; install it with: apt-get install nginx-light\n")
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        # nginx's workers may run as another user.
        Path(folder).chmod(0o755)
        result = run(Path(folder), arguments.seconds)
    if not arguments.json:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))
    print(json.dumps(result))
    return 1 if result["bad_gateway"] or result["failed"] or result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
