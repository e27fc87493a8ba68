"""Compares training speed: the latent loop, one pass without thoughts, and the public implementation's loop.

    python benchmarks/training.py --json              # 2 CPU cores: about ten minutes
    python benchmarks/training.py --profile ours_bf16 # a trace and the slowest operators
    python benchmarks/training.py --device cuda --model llama_1b --rounds 10

The model is a six-layer, 512-wide GPT-2 from scratch. It is trained on ProsQA with six thoughts and no written step
(``--stage 6``), in micro batches of 8 problems, each of which is an optimizer update. On a CPU all variants run in one
process in turns, and medians over the rounds are reported, so that whatever slows the machine down slows all variants.
With ``--apart``, which is the default on a GPU, each variant has a process of its own, since the models and optimizers
of all variants do not fit into the memory of one GPU; its times are printed when it ends.

* ``naive``: see ``naive_training.py``; plain PyTorch and AdamW in fp32, with problems in their original order.
* ``ours``, ``ours_bf16``: the latent loop in the project's engine (fp32: ZeRO 0; bf16: ZeRO 1 with fp32 master
  weights), on micro batches that are cut from global batches of 128 as in training.
* ``single``, ``single_bf16``: the same sequences in one pass, with thoughts read as tokens.
* ``plain``: like ``ours``, but with transformers' growing cache and ordinary gradients (``model/passes.PlainPasses``).

The last line is JSON:

* ``ratio_fp32``, ``ratio_bf16``: real tokens (padding not counted) per second, over the naive loop's.
* ``loop_over_single``: time of an update over that of one pass.
* ``real_token_share``: share of columns that are not padding, at micro batch 16.
* ``memory_ratio``: peak memory over the naive loop's, each measured in its own process.
* ``mfu_fp32``, ``mfu_bf16``: operations per second that the real tokens need, over what large matrix products reach on
  this machine.
* ``loss_difference``: largest difference between the losses of ``naive`` and ``ours`` over 20 updates on the same
  batches.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from naive_training import LR, naive_update
from training_workload import (
    DTYPES,
    MODELS,
    Workload,
    make_config,
    make_engine,
    make_model,
    matrix_peak,
    median_ratio,
    operations,
    peak_memory_mb,
)

from coconut_ds.distributed.process_group import start_ranks, stop_ranks
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.methods.layout import Layout
from coconut_ds.model.attention import takes_attention
from coconut_ds.model.precision import SLOW_BF16, multiplies_bf16

VARIANTS = ("naive", "single", "plain", "ours", "single_bf16", "ours_bf16")
ENVIRONMENT = dict(os.environ)
"""The environment before this process becomes a rank, for the processes that it starts."""


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="gpt2_small", choices=list(MODELS))
    parser.add_argument("--stage", type=int, default=6, help="steps replaced, one thought each")
    parser.add_argument("--micro", type=int, default=8, help="problems in a micro batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--data", help="a file of problems; default: the published ones if present, else generated")
    parser.add_argument("--tokenizer", help="folder or name of a tokenizer")
    parser.add_argument("--without-naive", action="store_true")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--checkpointing", action="store_true", help="use activation checkpointing in ours")
    parser.add_argument(
        "--profile", metavar="VARIANT", choices=VARIANTS, help="profile one update of this variant, and stop"
    )
    parser.add_argument(
        "--apart", action=argparse.BooleanOptionalAction, help="one process per variant; default: on a GPU"
    )
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds-of", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print only the last line")
    arguments = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", arguments.device)
    torch.set_num_threads(arguments.threads)
    work = Workload.load(arguments.data, arguments.tokenizer, arguments.stage)
    ranks = start_ranks()
    bench = Bench(arguments, work, ranks)
    if arguments.memory_of:
        print(json.dumps(bench.memory(arguments.memory_of)))
    elif arguments.rounds_of:
        print(json.dumps(bench.rounds([arguments.rounds_of])))
    elif arguments.profile:
        bench.profile(arguments.profile)
    else:
        result = bench.measure()
        if not arguments.json:
            for key, value in result.items():
                print(f"{key:>24}  {value}")
        print(json.dumps(result))
    stop_ranks()


class Bench:
    """Builds the variants, each when it is first used, and measures them."""

    def __init__(self, arguments: argparse.Namespace, work: Workload, ranks: Ranks) -> None:
        self.arguments, self.work, self.ranks = arguments, work, ranks
        self.device = torch.device(arguments.device)
        self._steps: dict[str, Callable[[Sequence[Layout]], float]] = {}
        self._sorted_batches = work.micro_batches(arguments.micro)
        self._plain_batches = work.plain_batches(arguments.micro)

    def step(self, variant: str) -> Callable[[Sequence[Layout]], float]:
        """The function that does one update of a variant on a micro batch and returns its loss."""
        if variant not in self._steps:
            model = make_model(self.arguments.model, self.work, self.arguments.attention)
            self._steps[variant] = (
                naive_update(model, self.work.markers.thought, self.work.pad_id, self.device)
                if variant == "naive"
                else self._engine(model, variant)
            )
        return self._steps[variant]

    def _engine(self, model: torch.nn.Module, variant: str) -> Callable[[Sequence[Layout]], float]:
        engine = make_engine(
            model, self.ranks, self.arguments.micro, variant.endswith("bf16"), self.arguments.checkpointing
        )
        single = variant.startswith("single")
        # ``plain``: makes ``passes_of`` choose ``PlainPasses``.
        supports_latent_passes = takes_attention if variant != "plain" else lambda model: False

        def update(layouts: Sequence[Layout]) -> float:
            if single:
                layouts = [replace(layout, first_thought=len(layout), num_thoughts=0) for layout in layouts]
            with patch("coconut_ds.model.passes.takes_attention", supports_latent_passes):
                return float(engine.update([self.work.collate(layouts)], LR).loss)

        return update

    def measure(self) -> dict[str, object]:
        """Runs all variants in turns. Returns the numbers described at the top of this file."""
        names = [name for name in VARIANTS if not (name == "naive" and self.arguments.without_naive)]
        if not multiplies_bf16(self.device):
            names = [name for name in names if not name.endswith("bf16")]
        apart = self.device.type == "cuda" if self.arguments.apart is None else self.arguments.apart
        seconds = self._rounds_in_processes(names) if apart else self.rounds(names)
        numbers = range(1, self.arguments.rounds + 1)
        batches = {name: [self._batch(name, number) for number in numbers] for name in names}
        tokens = {name: [sum(map(len, batch)) for batch in batches[name]] for name in names}
        config = make_config(self.arguments.model, len(self.work.tokenizer))
        work = {name: [operations(config, batch) for batch in batches[name]] for name in names}
        return self._result(seconds, tokens, work)

    def rounds(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Seconds of an update in each round, for each of the variants, which take turns."""
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(self.arguments.rounds + 1):
            # Each round starts with another variant: allocating again the memory that the naive loop freed is slow.
            turn = number % len(names)
            for name in [*names[turn:], *names[:turn]]:
                took = self._timed(name, self._batch(name, number))
                # The first round warms up.
                if number:
                    seconds[name].append(took)
        return seconds

    def _rounds_in_processes(self, names: Sequence[str]) -> dict[str, list[float]]:
        """The same, with one process after another."""
        seconds: dict[str, list[float]] = {}
        for name in names:
            seconds |= self._in_a_process("--rounds-of", name)
            print(f"{name:>12}  {statistics.median(seconds[name]):.3f} s an update", file=sys.stderr, flush=True)
        return seconds

    def _batch(self, name: str, number: int) -> Sequence[Layout]:
        """The micro batch of a variant in a round. Lengths differ between rounds, not between variants of a round."""
        batches = self._plain_batches if name == "naive" else self._sorted_batches
        return batches[number * 5 % len(batches)]

    def _timed(self, name: str, batch: Sequence[Layout]) -> float:
        """Seconds of one update."""
        step = self.step(name)
        self._synchronise()
        began = time.perf_counter()
        step(batch)
        self._synchronise()
        return time.perf_counter() - began

    def _result(
        self, seconds: dict[str, list[float]], tokens: dict[str, list[int]], work: dict[str, list[float]]
    ) -> dict[str, object]:
        """The numbers to report, from each variant's seconds, real tokens and operations in each round."""
        rates = {name: median_ratio(tokens[name], seconds[name]) for name in seconds}
        kinds = [kind for kind in DTYPES if kind == "fp32" or multiplies_bf16(self.device)]
        peaks = {kind: matrix_peak(self.device, DTYPES[kind]) for kind in kinds}

        def over_single(name: str, single: str) -> float:
            return round(median_ratio(seconds[name], seconds[single]), 3)

        def mfu(name: str, kind: str) -> float:
            return round(median_ratio(work[name], seconds[name]) / peaks[kind], 3)

        on_gpu = self.device.type == "cuda"
        result: dict[str, object] = {
            "device": torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "model": self.arguments.model,
            "problems": self.work.source,
            "tokens_a_problem": round(self.work.tokens_a_problem, 1),
            "update_s": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
            "tokens_per_s": {name: round(rate, 1) for name, rate in rates.items()},
            "loop_over_single": over_single("ours", "single"),
            "plain_over_single": over_single("plain", "single"),
            "real_token_share": round(self.work.real_share(16), 4),
            "real_token_share_micro": round(self.work.real_share(self.arguments.micro), 4),
            "matrix_tflops": {kind: round(peak / 1e12, 3) for kind, peak in peaks.items()},
            "mfu_fp32": mfu("ours", "fp32"),
        }
        has_bf16 = "ours_bf16" in rates
        result["loop_over_single_bf16"] = over_single("ours_bf16", "single_bf16") if has_bf16 else SLOW_BF16
        result["mfu_bf16"] = mfu("ours_bf16", "bf16") if has_bf16 else SLOW_BF16
        if "naive" in rates:
            result["ratio_fp32"] = round(rates["ours"] / rates["naive"], 2)
            result["ratio_bf16"] = round(rates["ours_bf16"] / rates["naive"], 2) if has_bf16 else SLOW_BF16
            result["loss_difference"] = self.loss_difference()
        return result | self._memory(seconds)

    def _memory(self, variants: Iterable[str]) -> dict[str, object]:
        """Peak memory of each variant, and over the naive loop's."""
        # Frees this process's models first.
        self._steps.clear()
        memory = {name: self._in_a_process("--memory-of", name)["peak_mb"] for name in variants}
        result: dict[str, object] = {"peak_mb": {name: round(value) for name, value in memory.items()}}
        if "naive" in memory:
            result["memory_ratio"] = round(memory["ours"] / memory["naive"], 3)
            if "ours_bf16" in memory:
                result["memory_ratio_bf16"] = round(memory["ours_bf16"] / memory["naive"], 3)
        return result

    def loss_difference(self, updates: int = 20) -> float:
        """Largest difference between the losses of ``naive`` and ``ours``, which start from the same weights."""
        self._steps.clear()
        found = []
        batches = [batch[:2] for batch in self.work.plain_batches(self.arguments.micro)]
        for number in range(updates):
            batch = batches[number % len(batches)]
            found.append(abs(self.step("naive")(batch) - self.step("ours")(batch)))
        return max(found)

    def memory(self, variant: str) -> dict[str, float]:
        """Peak memory of this process after two updates on the longest micro batch, in MB."""
        batches = self.work.micro_batches(self.arguments.micro)
        longest = max(batches, key=lambda batch: sum(map(len, batch)))
        for _ in range(2):
            self.step(variant)(longest)
        return {"peak_mb": peak_memory_mb(self.device)}

    def _in_a_process(self, option: str, variant: str) -> dict[str, Any]:
        """What a new process prints that is given ``option`` for a variant."""
        given = [argument for argument in sys.argv[1:] if argument != "--json"]
        command = [sys.executable, __file__, *given, option, variant]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT)
        values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return values

    def profile(self, variant: str) -> None:
        """Writes a trace of one update, and prints the operators that take most time themselves."""
        batch = self.work.micro_batches(self.arguments.micro)[0]
        for _ in range(2):
            self.step(variant)(batch)
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profiler:
            self.step(variant)(batch)
        path = Path("outputs") / f"trace_{variant}.json"
        path.parent.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(path))
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60))
        print(f"trace: {path}; peak so far {peak_memory_mb(self.device):.0f} MB")

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
