"""Keeps a server busy from a process of its own, until it is killed: ``python tests/fairness_load.py KIND URL KEY``.

* ``measures``: two visitors of the app measure the data set, again and again.
* ``prompts``: three clients send prompts of 2,000 tokens.
* ``greedy``: one client has 12 requests with 32 completions of 100 tokens each in progress.

Prints ``ready`` once the server works on it. Needs no torch, so it starts at once.
"""

import asyncio
import json
import sys
import threading
from collections import Counter

from asking_http import Connection
from visiting_app import Visitor

MODEL = "model"
LONG = 2000


async def post_forever(url: str, key: str, count: int, body: dict[str, object], vary: bool) -> None:
    """``count`` connections send the body again and again; with ``vary``, each time with another first word."""
    host, _, port = url.removeprefix("http://").partition(":")
    headers = f"Authorization: Bearer {key}\r\n" if key else ""
    statuses: Counter[int] = Counter()

    async def one(number: int) -> None:
        connection, times = Connection(host, int(port)), 0
        while True:
            prompt = f"{number} {times} {body['prompt']}"[:LONG] if vary else body["prompt"]
            sent = json.dumps({**body, "prompt": prompt}).encode()
            status, _ = await connection.post("/v1/completions", sent, headers)
            statuses[status] += 1
            times += 1
            if status != 200:
                await asyncio.sleep(0.05)

    tasks = [asyncio.ensure_future(one(number)) for number in range(count)]
    await asyncio.sleep(1.0)
    print("ready", flush=True)
    await asyncio.gather(*tasks)


def measure_forever(url: str) -> None:
    """Two visitors measure the data set, again and again."""
    begun = threading.Semaphore(0)

    def visit() -> None:
        visitor = Visitor(url)
        while True:
            for message in visitor.press("run-dataset", count=300, parts=["sweep", "effects", "probes"]):
                if message["msg"] == "process_generating" and "<progress" in json.dumps(message):
                    begun.release()

    for _ in range(2):
        threading.Thread(target=visit, daemon=True).start()
    for _ in range(6):
        begun.acquire()
    print("ready", flush=True)
    threading.Event().wait()


def main() -> None:
    """Makes the server busy."""
    kind, url, key = sys.argv[1:4]
    if kind == "measures":
        measure_forever(url)
    body: dict[str, object] = {"model": MODEL, "max_tokens": 1, "prompt": "a b c d e f g " * 200}
    if kind == "prompts":
        asyncio.run(post_forever(url, key, 3, body, vary=True))
    body = {"model": MODEL, "max_tokens": 100, "min_tokens": 100, "n": 16, "prompt": ["one", "two"], "temperature": 1.0}
    asyncio.run(post_forever(url, key, 12, body, vary=False))


if __name__ == "__main__":
    main()
