"""Section ``mfu``: updates of GPT-2 (fp32, TF32, bf16) and of Llama-1B (bf16) on ProsQA's lengths, with six thoughts.

For each model and type: seconds of an update whose shapes are seen for the first time and of one whose shapes are not,
MFU relative to the data sheet and to large matrix products on this device, launched kernels, share of time in which
the GPU is busy, and peak memory.
"""

import gc
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from generation_workload import synchronise
from training_workload import operations, peak_memory_mb

from coconut_ds.model.fused import PLAIN, choose_kernels
from gpu.environment import device_name, reached
from gpu.hardware import card_of, mfu
from gpu.report import Report
from gpu.trace_events import count
from gpu.workload import UPDATE, Options, Update, has_engine, make_model, make_update, micro_batches, traced


@dataclass(frozen=True)
class Case:
    """One model and type."""

    model: str
    kind: str
    """fp32, tf32 or bf16."""
    memory_gib: float
    """Memory that it takes, estimated; a GPU with less skips it."""
    lowest: float
    """MFU below which the check fails: half of the smaller estimate for an A100 or H200 in docs/gpu.md."""
    fused: bool = False
    """Whether with the fused kernels that ``model.fused_kernels=auto`` chooses."""

    @property
    def name(self) -> str:
        return f"{self.model} {self.kind}{' fused' if self.fused else ''}"


CASES = (
    Case("gpt2", "fp32", 12, 0.15),
    Case("gpt2", "tf32", 12, 0.05),
    Case("gpt2", "bf16", 10, 0.06),
    Case("llama_1b", "bf16", 50, 0.14),
    Case("llama_1b", "bf16", 50, 0.14, fused=True),
)
FASTER = (("gpt2 tf32", "gpt2 fp32"), ("gpt2 bf16", "gpt2 fp32"), ("llama_1b bf16 fused", "llama_1b bf16"))
"""Cases, each with one that takes longer."""
WAITS = 3
"""How often an update of the project's engine may wait for the GPU."""
BATCHES, ROUNDS = 4, 3
"""Different micro batches, and how often each is repeated after its first time."""


def run(report: Report, options: Options) -> None:
    """Fills the report."""
    ranks = None
    if has_engine():
        from coconut_ds.distributed.process_group import start_ranks

        os.environ.setdefault("DS_ACCELERATOR", options.device.type)
        ranks = start_ranks()
    report.number(
        "optimizer", "the project's engine" if ranks else "torch's AdamW, since DeepSpeed or Hydra is missing"
    )
    for case in CASES[:1] if options.small else CASES:
        with report.part(case.name):
            _measure(report, options, case, ranks)
        gc.collect()
        if options.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if options.on_gpu:
        _compare_kinds(report)
    if ranks:
        from coconut_ds.distributed.process_group import stop_ranks

        stop_ranks()


def _measure(report: Report, options: Options, case: Case, ranks: Any) -> None:
    if options.on_gpu and (has := torch.cuda.get_device_properties(0).total_memory / 2**30) < case.memory_gib:
        report.skip(case.name, f"needs about {case.memory_gib} GiB of GPU memory, found {has:.0f}")
        return
    kernels = choose_kernels("auto", options.device) if case.fused else PLAIN
    if case.fused and kernels == PLAIN:
        report.skip(case.name, "needs triton (and liger-kernel)")
        return
    micro = 4 if options.small else 32
    batches = micro_batches(2 if options.small else BATCHES, micro)
    model = make_model(case.model, options)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if case.kind == "tf32" else "highest")
    try:
        update = make_update(model, micro, case.kind == "bf16", options, ranks, kernels)
        first, again = _times(update, batches, options)
        events = traced(lambda: update(batches[-1]), options, case.name.replace(" ", "_"))
    finally:
        torch.set_float32_matmul_precision(before)
    counts, seconds = count(events, UPDATE), sum(again)
    needed = sum(operations(model.config, batch) for batch in batches)
    card = card_of(device_name(options))
    found = {
        "kernels": kernels.describe(model) or "torch's",
        "update_s": round(seconds / len(batches), 4),
        "first_update_s": round(sum(first) / len(batches), 4),
        "tokens_per_s": round(sum(len(layout) for batch in batches for layout in batch) / seconds),
        "tflop": round(needed / len(batches) / 1e12, 4),
        "mfu": round(mfu(needed, seconds, card.peak(case.kind)), 4) if card else None,
        "mfu_of_products": round(mfu(needed, seconds, reached(options, case.kind)), 4),
        "launches": counts.launches,
        # Of the time without the profiler, which slows the launches down, but not the kernels.
        "gpu_busy": round(counts.busy_s / again[-1], 3),
        "synchronisations": counts.synchronisations,
        "copies": counts.copies,
        "peak_memory_gib": round(peak_memory_mb(options.device) * 1e6 / 2**30, 2),
    }
    report.number(case.name, found)
    if options.on_gpu:
        _check(report, case, found, ranks)


def _check(report: Report, case: Case, found: dict[str, Any], ranks: Any) -> None:
    share, waits = found["mfu"] or found["mfu_of_products"], found["synchronisations"]
    report.say(f"{case.name}: {found['update_s']} s an update, MFU {share:.1%}, {found['launches']} launches")
    report.check(f"MFU of {case.name}", share > case.lowest, f"{share:.1%}", f"more than {case.lowest:.0%}")
    if ranks:
        report.check(f"waits of an update of {case.name}", waits <= WAITS, waits, f"at most {WAITS}")


def _times(update: Update, batches: Any, options: Options) -> tuple[list[float], list[float]]:
    """For each micro batch, the seconds of its first update, and the median of later ones."""
    # The first update of all also loads libraries.
    update(batches[0][:2])
    rounds: list[list[float]] = []
    for _ in range(2 if options.small else ROUNDS + 1):
        took = []
        for batch in batches:
            synchronise(options.device)
            began = time.perf_counter()
            update(batch)
            synchronise(options.device)
            took.append(time.perf_counter() - began)
        rounds.append(took)
    return rounds[0], [statistics.median(times) for times in zip(*rounds[1:], strict=True)]


def _compare_kinds(report: Report) -> None:
    for faster, slower in FASTER:
        seconds, others = (report.numbers.get(name, {}).get("update_s") for name in (faster, slower))
        if seconds and others:
            name, times = f"{faster} is faster than {slower}", f"{others / seconds:.2f} times"
            report.check(name, seconds < others, times, "more than 1")
