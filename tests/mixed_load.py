"""Requests of every kind at once against a real server: valid ones, wrong ones, clients that leave, wait or send
less than they announce.

    python tests/mixed_load.py --requests 10000

Every valid request must get the text that the reasoner writes without a server, and every wrong one its own refusal;
none may get a 5xx status. At the end no slot is held and nothing waits, and the server's memory is within 5 % of what
it was after the first 1,000 requests. The last line of output is JSON; the exit code is 1 if any of this does not hold.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from serving import ServerProcess, save_checkpoint, serving

from coconut_ds import load_reasoner

KEY = "a key"
BODY_BYTES = 20_000
PROMPTS = ["hello", "the cat", "é€😀", "a" * 100, "1 + 2 =", "Every lempus is a rompus."]
WARM_UP = 1000


class Load:
    """One run against one server."""

    def __init__(self, server: ServerProcess, checkpoint: Path, seed: int = 0) -> None:
        self._server, self._random = server, random.Random(seed)
        host, _, port = server.url.removeprefix("http://").partition(":")
        self._address = host, int(port)
        self._expected = expected(checkpoint)
        self.kinds: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []

    async def run(self, count: int, clients: int = 48) -> float:
        """Sends requests; returns the server's memory at the end, divided by its memory after the warm-up."""
        first = min(WARM_UP, count // 2)
        await self._batch(first, clients)
        before = memory_kb(self._server)
        await self._batch(count - first, clients)
        return memory_kb(self._server) / before

    async def _batch(self, count: int, clients: int) -> None:
        left = [count]

        async def client() -> None:
            while left[0]:
                left[0] -= 1
                await self._one()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def _one(self) -> None:
        kind = self._random.choice(KINDS)
        self.kinds[kind] += 1
        try:
            async with asyncio.timeout(600):
                fault = await getattr(self, f"_{kind}")()
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            fault = repr(error)
        if fault:
            self.wrong.append(f"{kind}: {fault}")

    # Valid requests

    async def _whole(self) -> str | None:
        body, text = self._valid()
        status, answer = await self._ask(json.dumps(body).encode())
        return None if status == 200 and json.loads(answer)["choices"][0]["text"] == text else f"{status} {answer!r}"

    async def _chat(self) -> str | None:
        body, text = self._valid()
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        status, answer = await self._ask(json.dumps(body).encode(), "/v1/chat/completions")
        found = json.loads(answer)
        return None if status == 200 and found["choices"][0]["message"]["content"] == text else f"{status} {answer!r}"

    async def _stream(self, pause_s: float = 0.0) -> str | None:
        body, text = self._valid()
        reader, writer = await self._send(json.dumps({**body, "stream": True}).encode())
        chunks = []
        while chunk := await reader.read(65536 if not pause_s else 512):
            chunks.append(chunk)
            await asyncio.sleep(pause_s)
            if b"0\r\n\r\n" in chunk:
                break
        await close(writer)
        whole = b"".join(chunks)
        found = "".join(event["choices"][0]["text"] for event in events(whole))
        return None if found == text and b"data: [DONE]" in whole else repr(whole)

    async def _slow_reader(self) -> str | None:
        return await self._stream(pause_s=0.02)

    # Clients that leave

    async def _gone_before_the_answer(self) -> str | None:
        _, writer = await self._send(json.dumps({**self._valid()[0], "max_tokens": 120}).encode())
        await asyncio.sleep(self._random.random() * 0.05)
        await close(writer)
        return None

    async def _gone_midway(self) -> str | None:
        body = {**self._valid()[0], "max_tokens": 120, "stream": True}
        reader, writer = await self._send(json.dumps(body).encode())
        await reader.read(300)
        writer.transport.abort()
        return None

    async def _half_a_body(self) -> str | None:
        body = json.dumps(self._valid()[0]).encode()
        _, writer = await self._send(body[: len(body) // 2], length=len(body))
        await close(writer)
        return None

    # Wrong requests

    async def _oversized(self) -> str | None:
        return await self._refused(json.dumps({**self._valid()[0], "user": "x" * BODY_BYTES}).encode(), 413)

    async def _long_prompt(self) -> str | None:
        return await self._refused(json.dumps({**self._valid()[0], "prompt": "x" * 2000}).encode(), 400)

    async def _malformed(self) -> str | None:
        body = json.dumps(self._valid()[0]).encode()
        return await self._refused(body[: self._random.randrange(len(body))], 400)

    async def _wrong_type(self) -> str | None:
        wrong = self._random.choice(
            [{"max_tokens": "8"}, {"prompt": 5}, {"stop": [1]}, {"temperature": []}, {"n": 1.5}, {"stream": "no"}]
        )
        return await self._refused(json.dumps({**self._valid()[0], **wrong}).encode(), 400)

    async def _unknown_field(self) -> str | None:
        return await self._refused(json.dumps({**self._valid()[0], "n_thought": 3}).encode(), 400)

    async def _unknown_model(self) -> str | None:
        return await self._refused(json.dumps({**self._valid()[0], "model": "../tiny"}).encode(), 404)

    async def _wrong_key(self) -> str | None:
        return await self._refused(json.dumps(self._valid()[0]).encode(), 401, key="another")

    async def _bad_utf8(self) -> str | None:
        body = json.dumps(self._valid()[0]).encode().replace(b'"prompt": "', b'"prompt": "\xff\xfe')
        return await self._refused(body, 400)

    async def _no_http(self) -> str | None:
        reader, writer = await asyncio.open_connection(*self._address)
        writer.write(self._random.randbytes(64) + b"\r\n\r\n")
        answer = await reader.read(65536)
        await close(writer)
        return None if not answer or b" 400 " in answer.partition(b"\r\n")[0] else repr(answer)

    # Parts

    def _valid(self) -> tuple[dict[str, Any], str]:
        """A request whose answer is known, and that answer."""
        prompt, thoughts, stop = self._random.choice(list(self._expected))
        body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 12, "n_thoughts": thoughts}
        return {**body, "stop": stop} if stop else body, self._expected[prompt, thoughts, stop]

    async def _refused(self, body: bytes, expected_status: int, key: str = KEY) -> str | None:
        status, answer = await self._ask(body, key=key)
        if status == expected_status and set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}:
            return None
        return f"{status} {answer!r}, expected {expected_status}"

    async def _ask(self, body: bytes, path: str = "/v1/completions", key: str = KEY) -> tuple[int, bytes]:
        reader, writer = await self._send(body, path, key)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        self.statuses[status] += 1
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        answer = await reader.readexactly(int(length.partition(b":")[2]))
        await close(writer)
        return status, answer

    async def _send(
        self, body: bytes, path: str = "/v1/completions", key: str = KEY, length: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        )
        writer.write(f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body)
        await writer.drain()
        return reader, writer


KINDS = [
    *["whole", "chat", "stream"] * 3,
    *["slow_reader", "gone_before_the_answer", "gone_midway", "half_a_body", "oversized", "long_prompt", "malformed"],
    *["wrong_type", "unknown_field", "unknown_model", "wrong_key", "bad_utf8", "no_http"],
]


def expected(checkpoint: Path) -> dict[tuple[str, int, str], str]:
    """The text that the reasoner writes without a server, by prompt, number of thoughts and stop string."""
    reasoner, found = load_reasoner(checkpoint), {}
    for thoughts in (0, 2, 5):
        for answer in reasoner.generate(PROMPTS, thoughts, max_new_tokens=12):
            found[answer.question, thoughts, ""] = answer.text
            if len(answer.text) > 4:
                stop = answer.text[2:4]
                found[answer.question, thoughts, stop] = answer.text.partition(stop)[0]
    return found


def events(whole: bytes) -> list[dict[str, Any]]:
    """The events in an answer's chunks."""
    lines = [line for line in whole.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


async def close(writer: asyncio.StreamWriter) -> None:
    """Closes a connection that the other side may have closed already."""
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        return


def memory_kb(server: ServerProcess) -> int:
    """Resident memory of the server, in kB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


def run_load(count: int, folder: Path) -> dict[str, Any]:
    """Starts a server and runs a load against it."""
    checkpoint = save_checkpoint(folder / "tiny")
    options = ("--slots", "8", "--body-bytes", str(BODY_BYTES), "--load")
    with serving(checkpoint, key=KEY, options=options) as server:
        load, began = Load(server, checkpoint), time.perf_counter()
        growth = asyncio.run(load.run(count))
        seconds = time.perf_counter() - began
        ends = time.monotonic() + 10
        while server.metric("num_requests_running") + server.metric("num_requests_waiting") and time.monotonic() < ends:
            time.sleep(0.05)
        result = {
            "requests": sum(load.kinds.values()),
            "seconds": round(seconds, 1),
            "kinds": dict(load.kinds),
            "statuses": dict(sorted(load.statuses.items())),
            "wrong": len(load.wrong),
            "first_wrong": load.wrong[:3],
            "answered_5xx": sum(server.metric("http_requests_total", status=str(code)) for code in (500, 503, 504)),
            "slots": server.metric("num_slots"),
            "slots_held": server.metric("num_requests_running"),
            "waiting": server.metric("num_requests_waiting"),
            "memory_growth": round(growth - 1, 4),
            "tracebacks": server.log.count("Traceback"),
            "exit_code": server.stop(),
        }
    return result


def holds(result: dict[str, Any]) -> bool:
    """Whether the result meets all requirements."""
    keys = ("wrong", "answered_5xx", "slots_held", "waiting", "tracebacks", "exit_code")
    return not any(result[key] for key in keys) and result["memory_growth"] <= 0.05


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run_load(arguments.requests, Path(folder))
    print(json.dumps(result))
    return 0 if holds(result) else 1


if __name__ == "__main__":
    sys.exit(main())
