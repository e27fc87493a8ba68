"""40 clients against vLLM's server, with cancellations and preemptions: no wrong answer, no growth of memory.

    .venv-vllm/bin/python serve/vllm/tests/soak.py --minutes 10

Each client asks the questions of ``tiny`` in random order and compares each text with the reference. One request in
five is cancelled after a random time, streamed or not. Exit code 0: there were right answers, none was wrong and no
request failed, and the memory of the server's processes at the end was at most ``GROWTH`` times that after the first
fifth of the time.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import tiny
from conftest import whole
from test_server import TEXTS, body, metric, start

GROWTH = 1.05


class Clients:
    """Clients that ask until a time."""

    def __init__(self, address: str, until: float) -> None:
        self.address, self.until = address, until
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def count(self, what: str) -> None:
        """Notes an event."""
        with self.lock:
            self.counts[what] += 1

    def run(self, seed: int) -> None:
        """One client. Each request that fails is counted by the name of its error."""
        chance = random.Random(seed)
        with httpx.Client(base_url=self.address, timeout=300) as client:
            while time.monotonic() < self.until:
                index = chance.randrange(len(TEXTS))
                try:
                    self.count(self.cancel(client, index, chance) if chance.random() < 0.2 else self.ask(client, index))
                except Exception as error:
                    self.count(type(error).__name__)
                    time.sleep(0.1)

    def ask(self, client: httpx.Client, index: int) -> str:
        """What comes of a request."""
        answer = client.post("/v1/completions", json=body(index))
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        return "right" if whole(answer.json()["choices"][0]["text"]) == TEXTS[index] else "wrong"

    def cancel(self, client: httpx.Client, index: int, chance: random.Random) -> str:
        """What comes of a request whose client leaves early."""
        try:
            with client.stream(
                "POST",
                "/v1/completions",
                json=body(index, stream=chance.random() < 0.5),
                timeout=chance.uniform(0.05, 1),
            ) as stream:
                if stream.status_code != 200:
                    return f"status {stream.status_code}"
                for _, _line in zip(range(chance.randrange(1, 8)), stream.iter_lines(), strict=False):
                    pass
        except httpx.TimeoutException:
            pass
        return "cancelled"


def are_right(counts: Counter[str]) -> bool:
    """Whether there were right answers, and nothing but these and cancelled requests."""
    return counts["right"] > 0 and set(counts) <= {"right", "cancelled"}


def memory(process: psutil.Process) -> int:
    """Bytes that a process and those that it started hold."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def soak(folder: Path, minutes: float, number: int) -> bool:
    """Whether nothing was wrong."""
    process, address = start(tiny.build("llama", folder), folder / "log.txt")
    try:
        seconds = minutes * 60
        clients = Clients(address, time.monotonic() + seconds)
        threads = [threading.Thread(target=clients.run, args=(seed,)) for seed in range(number)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 5)
        before = memory(psutil.Process(process.pid))
        for thread in threads:
            thread.join()
        after = memory(psutil.Process(process.pid))
        with httpx.Client(base_url=address) as client:
            preempted = metric(client, "vllm:num_preemptions_total")
            left = metric(client, "vllm:num_requests_running") + metric(client, "vllm:num_requests_waiting")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    print(f"{dict(clients.counts)}, {preempted:.0f} preemptions, {left:.0f} requests left")
    print(f"memory: {before / 1e6:.0f} MB, then {after / 1e6:.0f} MB ({after / before - 1:+.1%})")
    return are_right(clients.counts) and preempted > 0 and left == 0 and after <= GROWTH * before


def main() -> None:
    """Runs the soak from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=40)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        is_right = soak(Path(folder), arguments.minutes, arguments.clients)
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
