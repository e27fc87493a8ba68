"""Compares three engines on the same model and prompts: ours, vLLM with the plugin, and stock vLLM without thoughts.

    make test-vllm VLLM_TESTS=--collect-only     # makes vLLM's environment
    python benchmarks/vllm.py --json             # 2 CPU cores: about five minutes

The model is the six-layer, 512-wide GPT-2 of ``benchmarks/generation_workload.py``. Requests have about 360 prompt
tokens, 6 thoughts and 16 new tokens; 32 run at a time. Stock vLLM writes as many tokens as the others have thoughts,
markers and tokens, so its ratio to the plugin is what thoughts cost. All engines are in memory and take turns,
``--rounds`` times and in another order each time; the medians of the rounds' ratios are reported. On a CPU vLLM runs
with the stand-ins of the tests.

The last line is JSON: for each type of the weights, requests per second (medians), ``plugin_over_stock`` and
``plugin_over_ours``.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from generation_workload import EOS, NEW_TOKENS, NUM_THOUGHTS, START, model_of, request_of, tokens_of_questions
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from coconut_ds.generation.batch import generate
from coconut_ds.model.backbone import add_marker_rows
from coconut_ds.model.card import CARD, ModelCard, marker_table
from coconut_ds.model.checkpoint import save_model
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.reasoner import load_reasoner

ROOT = Path(__file__).resolve().parent.parent
PLUGIN, VENV = ROOT / "serve" / "vllm", ROOT / ".venv-vllm"
SLOTS = 32


class Vllm:
    """An engine of vLLM in a process of its own."""

    def __init__(self, python: Path, folder: Path, workload: Path, kind: str, dtype: str, threads: int) -> None:
        command = [python, PLUGIN / "tests" / "timed_engine.py", folder, workload, kind, dtype]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._result()

    def _result(self) -> str:
        """The next result that the process prints; vLLM may print other lines."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return line.split()[1]
        raise RuntimeError(f"an engine of vLLM ended with code {self._process.wait()}; its output is above")

    def seconds(self) -> float:
        """The time that it takes to answer all requests."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._result())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Ours:
    """The project's own engine, in this process."""

    def __init__(self, folder: Path, prompts: list[list[int]], dtype: torch.dtype) -> None:
        self._loop: LatentLoop = load_reasoner(folder, dtype=dtype, device="cpu").loop
        self._requests = [request_of(prompt, NUM_THOUGHTS) for prompt in prompts]

    def seconds(self) -> float:
        """The time that it takes to answer all requests."""
        began = time.perf_counter()
        generate(self._loop, self._requests, [EOS], SLOTS, None, None)
        return time.perf_counter() - began


def save(folder: Path) -> None:
    """Writes a checkpoint of the benchmark's model, with a tokenizer that has one word for each id."""
    words = {f"w{number}": number for number in range(EOS)}
    core = Tokenizer(models.WordLevel({**words, "<|endoftext|>": EOS}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", eos_token="<|endoftext|>")
    backbone = add_marker_rows(model_of(torch.float32, torch.device("cpu")), tokenizer)
    card = ModelCard("coconut", 3, NUM_THOUGHTS, 2, 3, marker_table(backbone.markers))
    save_model(folder, backbone.model, backbone.model.state_dict(), tokenizer, card)


def compare(folder: Path, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Lets the engines take turns in one type of the weights."""
    prompts = tokens_of_questions(arguments.requests)
    content = {"prompts": prompts, "thoughts": NUM_THOUGHTS, "new_tokens": NEW_TOKENS, "start": START, "slots": SLOTS}
    workload = folder / "workload.json"
    workload.write_text(json.dumps(content), encoding="utf-8")
    thinking, plain = folder / "thinking", folder / "plain"
    engines: dict[str, Ours | Vllm] = {"ours": Ours(thinking, prompts, getattr(torch, dtype))}
    for kind in ("plugin", "stock", *(["compiled"] if arguments.compiled else [])):
        place = plain if kind == "stock" else thinking
        engines[kind] = Vllm(arguments.python, place, workload, kind, dtype, arguments.threads)
    for engine in engines.values():
        engine.seconds()
    # An engine can be slower after one engine than after another, so the order differs from round to round.
    orders = list(itertools.permutations(engines))
    some = [orders[turn * len(orders) // arguments.rounds % len(orders)] for turn in range(arguments.rounds)]
    times = [{kind: engines[kind].seconds() for kind in order} for order in some]
    for engine in engines.values():
        if isinstance(engine, Vllm):
            engine.close()
    rates = {kind: round(len(prompts) / statistics.median(one[kind] for one in times), 2) for kind in engines}
    ratios = {
        f"{kind}_over_{other}": round(statistics.median(one[other] / one[kind] for one in times), 3)
        for kind, other in (("plugin", "stock"), ("plugin", "ours"), ("compiled", "ours"))
        if kind in engines
    }
    return {"requests_per_s": rates, **ratios}


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=VENV / "bin" / "python", help="of vLLM's environment")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each engine")
    parser.add_argument("--requests", type=int, default=64, help="in each turn")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--compiled", action="store_true", help="also the plugin with a compiled model")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder / "thinking")
        shutil.copytree(folder / "thinking", folder / "plain")
        (folder / "plain" / CARD).unlink()
        result = {dtype: compare(folder, dtype, arguments) for dtype in arguments.dtype}
    if not arguments.json:
        for dtype, found in result.items():
            print(dtype, found)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
