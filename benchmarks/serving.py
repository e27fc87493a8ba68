"""A real server under load, beside the engine alone: what HTTP and many clients cost.

    python benchmarks/serving.py --json                 # 2 CPU cores: about four minutes
    python benchmarks/serving.py --device cuda

The six-layer, 512-wide GPT-2 of ``benchmarks/evaluation.py`` in bf16, with random weights; prompts as token ids, each
used once, so that none is in the cache. *Long* requests are like ProsQA's: 360 tokens, 6 thoughts, 16 new tokens.
*Short* ones have 32 tokens, 6 thoughts, 64 new ones.

In this process, while the server waits: the time that the engine takes to encode the long prompts (the *ceiling*: as if
thoughts and tokens cost nothing), one request at a time (*sequential*), and eight at a time. From here over loopback:
closed loops of 1, 8, 32 and 64 clients that wait for whole answers, and an open one whose requests come as a Poisson
process at half the rate of 64 clients and are streamed. What is compared takes turns, ``--rounds`` times, and medians
of the rounds' ratios count.

The last line is JSON: ``share_of_ceiling`` is requests a second of 64 clients over the ceiling's, ``short_ratio`` the
same for short ones over sequential service, ``http_overhead`` the time a request at eight clients over the engine's,
less 1, ``p99_over_p50`` of the open loop's end-to-end times, ``errors`` answers that were not 200, ``restart_s`` the
seconds from a start after SIGKILL to a server that has the model loaded and answers.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from evaluation import EOS, NUM_THOUGHTS, model_of, request_of, tokens_of_questions
from server_process import started
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from coconut_ds.generation.requests import Request
from coconut_ds.generation.thinking_engine import Op, ThinkingEngine
from coconut_ds.model.backbone import add_marker_rows
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import save_model
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.reasoner import load_reasoner

LONG, SHORT = (360, 16), (32, 64)
"""Tokens of a prompt, new tokens."""
SLOTS = 64


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--json", action="store_true", help="the last line alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder) / "model", arguments)
    if not arguments.json:
        for key, value in result.items():
            print(f"{key:>24}  {value}")
    print(json.dumps(result))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Engine and server in turns."""
    save(folder)
    prompts = Prompts()

    def count(number: int) -> int:
        return max(8, int(number * arguments.scale))

    engine = Alone(load_reasoner(folder, dtype=torch.bfloat16, device=arguments.device).loop)
    loops: dict[str, list[Loop]] = {}
    alone: dict[str, list[float]] = {}
    """Requests a second."""

    def told(name: str, loop: Loop) -> None:
        loops.setdefault(name, []).append(loop)
        sys.stderr.write(f"{name}: {loop.summary()}\n")

    def measured(name: str, seconds: float) -> None:
        alone.setdefault(name, []).append(1 / seconds)
        sys.stderr.write(f"engine alone, {name}: {1 / seconds:.2f}/s\n")

    with started(options_of(folder, arguments)) as (url, _):
        client = Client(url)

        def closed(kind: str, clients: int, number: int) -> None:
            bodies = prompts.bodies(KINDS[kind], count(number))
            told(f"{kind}_{clients}", asyncio.run(client.closed(clients, bodies)))

        engine.run(prompts.take(LONG, 8), 8)
        asyncio.run(client.closed(8, prompts.bodies(LONG, 16)))
        for _ in range(arguments.rounds):
            measured("ceiling", engine.encoding_s(prompts.take(LONG, count(64))))
            closed("long", 64, 128)
            measured("eight", engine.run(prompts.take(LONG, count(48)), 8))
            closed("long", 8, 48)
            measured("short", engine.run(prompts.take(SHORT, count(8)), 1))
            closed("short", 64, 128)
        measured("long", engine.run(prompts.take(LONG, count(8)), 1))
        for kind, clients, number in (("long", 1, 8), ("long", 32, 96), ("short", 1, 8)):
            closed(kind, clients, number)
        rate = statistics.median(loop.per_s for loop in loops["long_64"]) / 2
        told("long_open", asyncio.run(client.open(rate, prompts.bodies(LONG, count(200), stream=True))))

    def over(name: str, other: str) -> float:
        pairs = zip(loops[name], alone[other], strict=True)
        return statistics.median(loop.per_s / per_s for loop, per_s in pairs)

    end_to_end = loops["long_open"][0].quantiles("end_to_end")
    return {
        "device": arguments.device if arguments.device != "cpu" else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "engine_alone_per_s": {name: round(statistics.median(values), 2) for name, values in alone.items()},
        "loops": {name: Loop.middle(rounds).summary() for name, rounds in loops.items()},
        "share_of_ceiling": round(over("long_64", "ceiling"), 3),
        "short_ratio": round(over("short_64", "short"), 2),
        "http_overhead": round(1 / over("long_8", "eight") - 1, 3),
        "p99_over_p50": round(end_to_end[2] / end_to_end[0], 2),
        "errors": sum(loop.errors for rounds in loops.values() for loop in rounds),
        "restart_s": round(restart_s(options_of(folder, arguments), arguments.rounds), 1),
    }


KINDS = {"long": LONG, "short": SHORT}


class Prompts:
    """Token ids, none of them twice."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        self._long = tokens_of_questions(64)

    def question(self, length: int) -> list[int]:
        """So many tokens: of a question of ProsQA's generator, as far as it goes, if many are wanted."""
        if length < 100:
            return [self._random.randrange(EOS) for _ in range(length)]
        # The same questions in other words each time: their tokens, moved on.
        question, by = self._random.choice(self._long), self._random.randrange(EOS)
        return [(token + by) % EOS for token in (question * 3)[:length]]

    def take(self, kind: tuple[int, int], count: int) -> list[Request]:
        """Requests of the engine."""
        length, new = kind
        return [request_of(self.question(length), NUM_THOUGHTS, new) for _ in range(count)]

    def bodies(self, kind: tuple[int, int], count: int, stream: bool = False) -> list[bytes]:
        """Bodies of HTTP requests."""
        length, new = kind
        made = []
        for _ in range(count):
            body = {"model": "model", "prompt": self.question(length), "max_tokens": new, "min_tokens": new}
            made.append(json.dumps({**body, "stream": True} if stream else body).encode())
        return made


def save(folder: Path) -> None:
    """A checkpoint of the benchmark's model, with a word a token."""
    words = {f"w{number}": number for number in range(EOS)}
    core = Tokenizer(models.WordLevel({**words, "<|endoftext|>": EOS}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", eos_token="<|endoftext|>")
    backbone = add_marker_rows(model_of(torch.bfloat16, torch.device("cpu")), tokenizer)
    card = ModelCard("coconut", 3, NUM_THOUGHTS, 2, 3, marker_table(backbone.markers))
    save_model(folder, backbone.model, backbone.model.state_dict(), tokenizer, card)


class Alone:
    """The engine without a server."""

    def __init__(self, loop: LatentLoop) -> None:
        self._loop = loop

    def run(self, requests: Sequence[Request], slots: int) -> float:
        """Seconds a request."""
        return self._timed(requests, slots)[0]

    def encoding_s(self, requests: Sequence[Request]) -> float:
        """Seconds that encoding the prompt of one takes."""
        return self._timed(requests, SLOTS)[1]

    def _timed(self, requests: Sequence[Request], slots: int) -> tuple[float, float]:
        engine = ThinkingEngine(self._loop, [EOS], slots, 512)
        for request in requests:
            engine.submit(request)
        began, encoding = time.perf_counter(), 0.0
        while op := engine.due():
            before = time.perf_counter()
            engine.step(op)
            encoding += (time.perf_counter() - before) * (op is Op.ENCODE)
        return (time.perf_counter() - began) / len(requests), encoding / len(requests)


def restart_s(options: Sequence[str], rounds: int) -> float:
    """Median of the seconds that a server takes to be ready after one was killed."""
    seconds = []
    for _ in range(rounds + 1):
        with started(options, end=signal.SIGKILL) as (_, ready_s):
            seconds.append(ready_s)
    return statistics.median(seconds[1:])


def options_of(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """The server's command line."""
    options = ["api", "--checkpoint", str(folder), "--load", "--dtype", "bfloat16", "--slots", str(SLOTS)]
    options += ["--max-positions", "512", "--device", arguments.device, "--threads", str(arguments.threads)]
    return options


@dataclass
class Loop:
    """What a load came to."""

    began: float = 0.0
    ended: float = 0.0
    end_to_end: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: int = 0

    @staticmethod
    def middle(rounds: Sequence["Loop"]) -> "Loop":
        """The one of middling rate."""
        return sorted(rounds, key=lambda loop: loop.per_s)[len(rounds) // 2]

    @property
    def per_s(self) -> float:
        """Requests."""
        return len(self.end_to_end) / (self.ended - self.began)

    def quantiles(self, name: str) -> tuple[float, float, float]:
        """p50, p95, p99 in seconds."""
        values = getattr(self, name)
        cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
        return cuts[49], cuts[94], cuts[98]

    def summary(self) -> dict[str, Any]:
        """Plain numbers."""

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


class Client:
    """Plain HTTP/1.1 on connections that stay open: the load shares its cores with the server, so it must be light."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)

    async def closed(self, clients: int, bodies: Sequence[bytes]) -> Loop:
        """Each client sends its next request when it has its answer."""
        loop, waiting = Loop(time.perf_counter()), list(bodies)

        async def client() -> None:
            connection = await asyncio.open_connection(self._host, self._port)
            while waiting:
                await self._one(connection, waiting.pop(), loop)
            connection[1].close()

        await asyncio.gather(*(client() for _ in range(clients)))
        loop.ended = time.perf_counter()
        return loop

    async def open(self, rate: float, bodies: Sequence[bytes]) -> Loop:
        """Requests come when they come, ``rate`` a second on average."""
        loop, rng, at = Loop(time.perf_counter()), random.Random(2), 0.0

        async def later(seconds: float, body: bytes) -> None:
            await asyncio.sleep(max(0.0, loop.began + seconds - time.perf_counter()))
            connection = await asyncio.open_connection(self._host, self._port)
            await self._one(connection, body, loop)
            connection[1].close()

        tasks = []
        for body in bodies:
            at += rng.expovariate(rate)
            tasks.append(later(at, body))
        await asyncio.gather(*tasks)
        loop.ended = time.perf_counter()
        return loop

    async def _one(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes, loop: Loop
    ) -> None:
        reader, writer = connection
        began = time.perf_counter()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        ok = answer.startswith(b"HTTP/1.1 200")
        length = re.search(rb"content-length: (\d+)", answer)
        if length:
            values = json.loads(await reader.readexactly(int(length[1])))
            loop.tokens += values["usage"]["completion_tokens"] if ok else 0
        else:
            tokens = 0
            while size := int(await reader.readline(), 16):
                tokens += (await reader.readexactly(size + 2)).count(b'"text":')
                if tokens == 1:
                    loop.first_token.append(time.perf_counter() - began)
            await reader.readline()
            loop.tokens += tokens
        loop.errors += not ok
        loop.end_to_end.append(time.perf_counter() - began)


if __name__ == "__main__":
    main()
