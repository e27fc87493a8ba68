"""Compares the engine's one-position step with the time to read its bytes from memory.

    python benchmarks/step.py --json                       # 2 CPU cores: about a minute
    python benchmarks/step.py --dtype float32 --slots 64
    python benchmarks/step.py --device cuda

The model and the requests are those of ``benchmarks/generation_workload.py``; all slots are running. A step is an
*advance*, which appends one position to each slot, and a *choose*, which runs the head and picks tokens. An advance
must read the weights outside of the embedding, and the keys and values of all slots. In each round, an advance, a
choose and a copy within memory are timed one after the other. The copy reads half as many bytes as the advance must
read, and writes as many, so it moves as many bytes as the advance. Medians over the rounds of ratios within a round.

The last line is JSON:

* ``advance_over_floor``: time of an advance over the time to move the bytes of weights and cache (whole slots).
* ``advance_over_held``: the same for the bytes of weights and of the positions in use.
* ``choose_over_floor``: time of a choose over the time to move the bytes of the head's weight.
* ``operations``: number of operations that PyTorch dispatches in an advance.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from generation_workload import EOS, NUM_THOUGHTS, model_of, request_of, synchronise, tokens_of_questions
from torch.utils._python_dispatch import TorchDispatchMode

from coconut_ds.generation.requests import Request
from coconut_ds.generation.thinking_engine import Op, ThinkingEngine
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.precision import multiplies_bf16

WARM_UPS = 8
"""Advances before the first round."""


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    result = measure(LatentLoop(model_of(dtype, device)), arguments.slots, arguments.rounds)
    result = {"device": str(device), "torch": torch.__version__, "dtype": arguments.dtype, **result}
    if not arguments.json:
        for key, value in result.items():
            print(f"{key:>24}  {value}")
    print(json.dumps(result))


def measure(loop: LatentLoop, slots: int, rounds: int) -> dict[str, Any]:
    """Runs all rounds. Returns the numbers described at the top of this file."""
    new = rounds + WARM_UPS + 2
    requests = [request_of(question, NUM_THOUGHTS, new) for question in tokens_of_questions(slots)]
    engine = running(loop, requests)
    operations = CountedOperations()
    with operations:
        engine.step(Op.ADVANCE)
    engine.step(Op.CHOOSE)
    whole = advance_bytes(loop, engine)
    seconds: list[tuple[float, float, float]] = []
    copies = Copies(whole, loop.device)
    while len(seconds) < rounds and engine.due():
        seconds.append((timed(engine, Op.ADVANCE), timed(engine, Op.CHOOSE), copies.seconds()))
    weights = whole - engine.cache.num_bytes
    held = weights + engine.cache.num_bytes * engine.num_held // (slots * engine.capacity)
    head = loop.model.get_output_embeddings().weight
    ratio = statistics.median(advance / copy for advance, _, copy in seconds)
    choose = statistics.median(choose / copy for _, choose, copy in seconds)
    return {
        "native": loop.model.dtype == torch.float32 or multiplies_bf16(loop.device),
        "slots": slots,
        "read_mb": round(whole / 1e6, 1),
        "held_mb": round(held / 1e6, 1),
        "advance_ms": round(statistics.median(each[0] for each in seconds) * 1e3, 2),
        "choose_ms": round(statistics.median(each[1] for each in seconds) * 1e3, 2),
        "copy_gb_per_s": round(whole / statistics.median(each[2] for each in seconds) / 1e9, 1),
        "advance_over_floor": round(ratio, 2),
        "advance_over_held": round(ratio * whole / held, 2),
        "choose_over_floor": round(choose * whole / (head.numel() * head.element_size()), 2),
        "operations": operations.count,
    }


def running(loop: LatentLoop, requests: Sequence[Request]) -> ThinkingEngine:
    """An engine in which all requests are encoded and think no more, just before an advance."""
    engine = ThinkingEngine(loop, [EOS], len(requests), max(request.num_positions for request in requests))
    for request in requests:
        engine.submit(request)
    advances = 0
    while (op := engine.due()) is not Op.ADVANCE or advances < WARM_UPS:
        engine.step(op)
        advances += op is Op.ADVANCE
    return engine


def timed(engine: ThinkingEngine, op: Op) -> float:
    """Seconds that one operation takes."""
    device = engine.cache.slot_layers[0].keys.device
    synchronise(device)
    began = time.perf_counter()
    engine.step(op)
    synchronise(device)
    return time.perf_counter() - began


def advance_bytes(loop: LatentLoop, engine: ThinkingEngine) -> int:
    """Bytes of the weights outside of the embedding, and of the cache."""
    weights = sum(p.numel() * p.element_size() for p in loop.model.base_model.parameters())
    embedding = loop.model.get_input_embeddings().weight
    return int(weights - embedding.numel() * embedding.element_size() + engine.cache.num_bytes)


class Copies:
    """Copies within the device's memory that read and write ``num_bytes`` together."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._device = device
        self._source = torch.ones(num_bytes // 4, dtype=torch.bfloat16, device=device)
        self._target = torch.empty_like(self._source)
        self.seconds()

    def seconds(self) -> float:
        """The time of one copy."""
        synchronise(self._device)
        began = time.perf_counter()
        self._target.copy_(self._source)
        synchronise(self._device)
        return time.perf_counter() - began


class CountedOperations(TorchDispatchMode):
    """Counts operations; those that only make a view are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    main()
