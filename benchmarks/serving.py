"""Compares a real server under load with the engine alone: what HTTP and many clients cost.

    python benchmarks/serving.py --json                 # 2 CPU cores: about four minutes
    python benchmarks/serving.py --device cuda

The model is the six-layer, 512-wide GPT-2 of ``benchmarks/generation_workload.py`` in bf16, with random weights.
Prompts are sent as token ids, and each is used once, so that none is in the cache. *Long* requests are like those of
ProsQA: 360 prompt tokens, 6 thoughts, 16 new tokens. *Short* requests have 32 prompt tokens, 6 thoughts and 64 new
tokens.

In this process, while the server is idle, the engine alone is measured: the time to encode the long prompts (the
*ceiling*, as if thoughts and tokens cost nothing), one request at a time, and eight at a time. The server is measured
over loopback: closed loops of 1, 8, 32 and 64 clients that wait for whole answers, and an open loop of streamed
requests that arrive as a Poisson process at half the rate of 64 clients. Measurements that are compared take turns,
``--rounds`` times, and the medians of the rounds' ratios are reported.

The last line is JSON:

* ``share_of_ceiling``: requests per second of 64 clients over the ceiling's.
* ``short_ratio``: the same for short requests, over one request at a time.
* ``http_overhead``: time per request with eight clients over the engine's, minus 1.
* ``p99_over_p50``: of the open loop's end-to-end times.
* ``errors``: answers with a status other than 200.
* ``restart_s``: seconds from a start after SIGKILL until the server has loaded the model and answers.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from generation_workload import EOS, NUM_THOUGHTS, model_of, request_of, tokens_of_questions
from server_process import started
from serving_load import LoadClient, LoadResult
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
"""Number of prompt tokens and of new tokens."""
KINDS = {"long": LONG, "short": SHORT}
SLOTS = 64


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all numbers of requests")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = Bench(Path(folder) / "model", arguments).measure()
    if not arguments.json:
        for key, value in result.items():
            print(f"{key:>24}  {value}")
    print(json.dumps(result))


class Bench:
    """Measures server and engine in turns and collects the results of all rounds."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        save(folder)
        self._arguments, self._options = arguments, options_of(folder, arguments)
        self._prompts = Prompts()
        self._engine = EngineAlone(load_reasoner(folder, dtype=torch.bfloat16, device=arguments.device).loop)
        self._loads: dict[str, list[LoadResult]] = {}
        self._engine_per_s: dict[str, list[float]] = {}
        """Requests per second of the engine alone."""

    def measure(self) -> dict[str, Any]:
        """Runs everything. Returns the numbers described at the top of this file."""
        with started(self._options) as (address, _):
            self._run_loads(LoadClient(address))
        loads, end_to_end = self._loads, self._loads["long_open"][0].quantiles("end_to_end")
        device = self._arguments.device
        return {
            "device": device if device != "cpu" else f"{torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "engine_alone_per_s": {name: round(statistics.median(v), 2) for name, v in self._engine_per_s.items()},
            "loops": {name: LoadResult.median(rounds).summary() for name, rounds in loads.items()},
            "share_of_ceiling": round(self._over("long_64", "ceiling"), 3),
            "short_ratio": round(self._over("short_64", "short"), 2),
            "http_overhead": round(1 / self._over("long_8", "eight") - 1, 3),
            "p99_over_p50": round(end_to_end[2] / end_to_end[0], 2),
            "errors": sum(result.errors for rounds in loads.values() for result in rounds),
            "restart_s": round(restart_s(self._options, self._arguments.rounds), 1),
        }

    def _run_loads(self, client: LoadClient) -> None:
        """All measurements that need the server, and those of the engine that are compared with them."""
        engine, prompts, count = self._engine, self._prompts, self._count
        # Warm up both.
        engine.run(prompts.take(LONG, 8), 8)
        asyncio.run(client.closed(8, prompts.bodies(LONG, 16)))
        for _ in range(self._arguments.rounds):
            self._add_engine("ceiling", engine.encoding_s(prompts.take(LONG, count(64))))
            self._closed_loop(client, "long", 64, 128)
            self._add_engine("eight", engine.run(prompts.take(LONG, count(48)), 8))
            self._closed_loop(client, "long", 8, 48)
            self._add_engine("short", engine.run(prompts.take(SHORT, count(8)), 1))
            self._closed_loop(client, "short", 64, 128)
        self._add_engine("long", engine.run(prompts.take(LONG, count(8)), 1))
        for kind, clients, number in (("long", 1, 8), ("long", 32, 96), ("short", 1, 8)):
            self._closed_loop(client, kind, clients, number)
        rate = statistics.median(result.per_s for result in self._loads["long_64"]) / 2
        self._add_load("long_open", asyncio.run(client.open(rate, prompts.bodies(LONG, count(200), stream=True))))

    def _closed_loop(self, client: LoadClient, kind: str, clients: int, number: int) -> None:
        bodies = self._prompts.bodies(KINDS[kind], self._count(number))
        self._add_load(f"{kind}_{clients}", asyncio.run(client.closed(clients, bodies)))

    def _count(self, number: int) -> int:
        """A number of requests, scaled by ``--scale``."""
        return max(8, int(number * self._arguments.scale))

    def _add_load(self, name: str, result: LoadResult) -> None:
        self._loads.setdefault(name, []).append(result)
        sys.stderr.write(f"{name}: {result.summary()}\n")

    def _add_engine(self, name: str, seconds: float) -> None:
        self._engine_per_s.setdefault(name, []).append(1 / seconds)
        sys.stderr.write(f"engine alone, {name}: {1 / seconds:.2f}/s\n")

    def _over(self, load: str, engine: str) -> float:
        """Median over the rounds of the server's rate over that of the engine alone."""
        pairs = zip(self._loads[load], self._engine_per_s[engine], strict=True)
        return statistics.median(result.per_s / per_s for result, per_s in pairs)


class Prompts:
    """Makes prompts of random token ids, so that none comes twice."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        self._long = tokens_of_questions(64)

    def question(self, length: int) -> list[int]:
        """A prompt of ``length`` tokens. If it is long, it repeats tokens as a question of ProsQA does."""
        if length < 100:
            return [self._random.randrange(EOS) for _ in range(length)]
        # Adding a random number to all token ids gives another question with the same structure.
        question, by = self._random.choice(self._long), self._random.randrange(EOS)
        return [(token + by) % EOS for token in (question * 3)[:length]]

    def take(self, kind: tuple[int, int], count: int) -> list[Request]:
        """Requests to the engine, of a kind (``LONG`` or ``SHORT``)."""
        length, new = kind
        return [request_of(self.question(length), NUM_THOUGHTS, new) for _ in range(count)]

    def bodies(self, kind: tuple[int, int], count: int, stream: bool = False) -> list[bytes]:
        """Bodies of HTTP requests, of a kind (``LONG`` or ``SHORT``)."""
        length, new = kind
        made = []
        for _ in range(count):
            body = {"model": "model", "prompt": self.question(length), "max_tokens": new, "min_tokens": new}
            made.append(json.dumps({**body, "stream": True} if stream else body).encode())
        return made


def save(folder: Path) -> None:
    """Writes a checkpoint of the benchmark's model, with a tokenizer that has one word for each id."""
    words = {f"w{number}": number for number in range(EOS)}
    core = Tokenizer(models.WordLevel({**words, "<|endoftext|>": EOS}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", eos_token="<|endoftext|>")
    backbone = add_marker_rows(model_of(torch.bfloat16, torch.device("cpu")), tokenizer)
    card = ModelCard("coconut", 3, NUM_THOUGHTS, 2, 3, marker_table(backbone.markers))
    save_model(folder, backbone.model, backbone.model.state_dict(), tokenizer, card)


class EngineAlone:
    """Measures the engine without a server."""

    def __init__(self, loop: LatentLoop) -> None:
        self._loop = loop

    def run(self, requests: Sequence[Request], slots: int) -> float:
        """Seconds per request."""
        return self._timed(requests, slots)[0]

    def encoding_s(self, requests: Sequence[Request]) -> float:
        """Seconds per request that the engine spends encoding prompts."""
        return self._timed(requests, SLOTS)[1]

    def _timed(self, requests: Sequence[Request], slots: int) -> tuple[float, float]:
        """Seconds per request in total, and for encoding its prompt."""
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
    """Median of the seconds that a server takes to be ready after another one was killed."""
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


if __name__ == "__main__":
    main()
