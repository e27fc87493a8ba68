"""HTTP load on a server, for the benchmarks: clients that send completion requests, and the times that they measure."""

import asyncio
import json
import random
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LoadResult:
    """The times and counts of one load. All times are in seconds."""

    began: float = 0.0
    ended: float = 0.0
    end_to_end: list[float] = field(default_factory=list)
    """For each request, the time until its whole answer had arrived."""
    first_token: list[float] = field(default_factory=list)
    """For each streamed request, the time until its first token had arrived."""
    tokens: int = 0
    """Number of generated tokens."""
    errors: int = 0
    """Number of answers with a status other than 200."""

    @staticmethod
    def median(rounds: Sequence["LoadResult"]) -> "LoadResult":
        """The round with the median rate of requests."""
        return sorted(rounds, key=lambda result: result.per_s)[len(rounds) // 2]

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return len(self.end_to_end) / (self.ended - self.began)

    def quantiles(self, name: str) -> tuple[float, float, float]:
        """The 50th, 95th and 99th percentile of ``end_to_end`` or ``first_token``."""
        values = getattr(self, name)
        cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
        return cuts[49], cuts[94], cuts[98]

    def summary(self) -> dict[str, Any]:
        """The result as plain numbers, for JSON."""

        def ms(name: str) -> list[float]:
            return [round(value * 1e3, 1) for value in self.quantiles(name)]

        return {
            "requests": len(self.end_to_end),
            "requests_per_s": round(self.per_s, 2),
            "tokens_per_s": round(self.tokens / (self.ended - self.began), 1),
            "end_to_end_ms_p50_p95_p99": ms("end_to_end"),
            **({"first_token_ms_p50_p95_p99": ms("first_token")} if self.first_token else {}),
            "errors": self.errors,
        }


class LoadClient:
    """Sends requests over plain HTTP/1.1 connections that stay open.

    It shares the CPU cores with the server, so it does as little work as possible.
    """

    def __init__(self, address: str) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)

    async def closed(self, clients: int, bodies: Sequence[bytes]) -> LoadResult:
        """A closed loop: each client sends its next request when the answer to the last one has arrived."""
        result, waiting = LoadResult(time.perf_counter()), list(bodies)

        async def client() -> None:
            connection = await asyncio.open_connection(self._host, self._port)
            while waiting:
                await self._request(connection, waiting.pop(), result)
            connection[1].close()

        await asyncio.gather(*(client() for _ in range(clients)))
        result.ended = time.perf_counter()
        return result

    async def open(self, rate: float, bodies: Sequence[bytes]) -> LoadResult:
        """An open loop: requests arrive as a Poisson process, ``rate`` per second on average."""
        result, rng, at = LoadResult(time.perf_counter()), random.Random(2), 0.0

        async def send_after(seconds: float, body: bytes) -> None:
            await asyncio.sleep(max(0.0, result.began + seconds - time.perf_counter()))
            connection = await asyncio.open_connection(self._host, self._port)
            await self._request(connection, body, result)
            connection[1].close()

        tasks = []
        for body in bodies:
            at += rng.expovariate(rate)
            tasks.append(send_after(at, body))
        await asyncio.gather(*tasks)
        result.ended = time.perf_counter()
        return result

    async def _request(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes, result: LoadResult
    ) -> None:
        """Sends one request, reads the answer (chunked if it is streamed) and records its times."""
        reader, writer = connection
        began = time.perf_counter()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        ok = answer.startswith(b"HTTP/1.1 200")
        length = re.search(rb"content-length: (\d+)", answer)
        if length:
            values = json.loads(await reader.readexactly(int(length[1])))
            result.tokens += values["usage"]["completion_tokens"] if ok else 0
        else:
            tokens = 0
            while size := int(await reader.readline(), 16):
                tokens += (await reader.readexactly(size + 2)).count(b'"text":')
                if tokens == 1:
                    result.first_token.append(time.perf_counter() - began)
            await reader.readline()
            result.tokens += tokens
        result.errors += not ok
        result.end_to_end.append(time.perf_counter() - began)
