"""Measures what encoding prompts in pieces does to a stream beside them, and to the rate of all requests.

    python benchmarks/pieces.py --json                     # 2 CPU cores: about three minutes
    python benchmarks/pieces.py --dtype bfloat16 --pieces 64 256 512

The model is the six-layer, 512-wide GPT-2 of ``benchmarks/generation_workload.py``. A *stream* is one request that
writes; its *gaps* are the times between its tokens. Beside it, two clients each send prompts of 2,000 tokens, one after
another, with 6 thoughts and 8 new tokens. *Load* is 64 clients with prompts of 360 tokens, 6 thoughts and 16 new
tokens, without a stream. An engine that encodes whole prompts and engines with pieces take turns, ``--rounds`` times;
ratios are medians over the rounds.

The last line is JSON, with an entry for each size of pieces (``whole``: no pieces):

* ``gap_ms``: of the stream's gaps the median, the 99th percentile and the largest, over all rounds.
* ``p99_over_alone``: the 99th percentile over the median gap of the stream without other requests.
* ``load_over_whole``: requests per second of 64 clients over those with whole prompts.
* ``prompts_over_whole``: encoded positions of the long prompts per second, beside the stream, over those with whole
  prompts; steps of the stream are included.
"""

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from generation_workload import EOS, NUM_THOUGHTS, model_of, request_of

from coconut_ds.generation.prefill import default_piece
from coconut_ds.generation.requests import Completion, Request, Score
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.model.latent_loop import LatentLoop

LONG, CAPACITY = 2000, 2048
"""Tokens of a long prompt, and positions of a slot."""


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--pieces", type=int, nargs="*", help="sizes; default: the default of the engine")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48, help="length of the stream")
    parser.add_argument("--requests", type=int, default=128, help="number of requests of the load")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    result = measure(LatentLoop(model_of(dtype, device, CAPACITY)), arguments)
    if not arguments.json:
        for key, value in result.items():
            print(f"{key:>12}  {value}")
    print(json.dumps({"device": str(device), "torch": torch.__version__, "dtype": arguments.dtype, **result}))


class Times(Listener):
    """When tokens were written, and how many requests ended."""

    def __init__(self) -> None:
        self.tokens: list[float] = []
        self.ended = 0

    def on_token(self, ticket: int, token: int, score: Score | None) -> None:
        """See ``Listener``."""
        self.tokens.append(time.perf_counter())

    def on_done(self, ticket: int, completion: Completion) -> None:
        """See ``Listener``."""
        self.ended += 1

    @property
    def gaps(self) -> list[float]:
        """Seconds between two tokens."""
        return [late - early for early, late in zip(self.tokens, self.tokens[1:], strict=False)]


class Bench:
    """Runs streams and loads."""

    def __init__(self, loop: LatentLoop, tokens: int, requests: int) -> None:
        self._loop, self._tokens, self._requests, self._random = loop, tokens, requests, random.Random(0)

    def stream(self, piece: int | None, clients: int) -> tuple[list[float], float]:
        """The gaps of a stream beside some clients, and the positions of their prompts encoded each second."""
        engine, heard, theirs = self._engine(piece, 1 + clients), Times(), Times()
        engine.submit(self._request(32, self._tokens), heard)
        while not heard.tokens:
            engine.step(engine.due())
        began, sent = time.perf_counter(), 0
        while heard.ended == 0:
            while sent - theirs.ended < clients:
                engine.submit(self._request(LONG, 8), theirs)
                sent += 1
            engine.step(engine.due())
        held = engine.num_held
        return heard.gaps, (theirs.ended * LONG + held) / (time.perf_counter() - began)

    def load(self, piece: int | None, clients: int = 64) -> float:
        """Requests per second of clients that each send one request after another."""
        engine, heard, sent = self._engine(piece, clients, 512), Times(), 0
        began = time.perf_counter()
        while heard.ended < self._requests:
            while sent - heard.ended < clients and sent < self._requests:
                engine.submit(self._request(360, 16), heard)
                sent += 1
            engine.step(engine.due())
        return self._requests / (time.perf_counter() - began)

    def _engine(self, piece: int | None, slots: int, capacity: int = CAPACITY) -> ThinkingEngine:
        engine = ThinkingEngine(self._loop, [EOS], slots, capacity, piece=piece)
        engine.take_memory()
        return engine

    def _request(self, length: int, new: int) -> Request:
        return request_of([self._random.randrange(EOS) for _ in range(length)], NUM_THOUGHTS, new)


def measure(loop: LatentLoop, arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements, in turns."""
    bench, sizes = Bench(loop, arguments.tokens, arguments.requests), arguments.pieces or [default_piece(loop)]
    alone: list[float] = []
    gaps, prompts, loads = (defaultdict[str, list[float]](list) for _ in range(3))
    for _ in range(arguments.rounds):
        alone += bench.stream(None, 0)[0]
        for piece in (None, *sizes):
            name = "whole" if piece is None else str(piece)
            found, rate = bench.stream(piece, 2)
            gaps[name] += found
            prompts[name].append(rate)
            loads[name].append(bench.load(piece) if arguments.requests else 1.0)
    typical = statistics.median(alone)

    def over_whole(rates: dict[str, list[float]], name: str) -> float:
        pairs = zip(rates[name], rates["whole"], strict=True)
        return round(statistics.median(rate / whole for rate, whole in pairs), 3)

    result: dict[str, Any] = {"alone_ms": round(1e3 * typical, 1)}
    for name, found in gaps.items():
        high = statistics.quantiles(found, n=100, method="inclusive")[98]
        result[name] = {
            "gap_ms": [round(1e3 * value, 1) for value in (statistics.median(found), high, max(found))],
            "p99_over_alone": round(high / typical, 2),
            "load_over_whole": over_whole(loads, name),
            "prompts_over_whole": over_whole(prompts, name),
        }
    return result


if __name__ == "__main__":
    main()
