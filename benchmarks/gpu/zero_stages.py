"""Part of the section ``correctness``: training under every ZeRO stage, on one rank, with the project's own launch.

Runs variants of ``tests/zero_worker.py``. One rank holds the only shard, so this shows that the engine's code works on
CUDA, and says nothing about communication between ranks.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from gpu.report import Report
from gpu.workload import TRAINING, Options

SAME = {
    **dict.fromkeys(("zero1", "zero2", "zero3", "zero3_live0"), "zero0"),
    "zero2_offload_qwen3": "zero0_qwen3",
    "zero3_offload_qwen3": "zero0_qwen3",
}
"""Variants, each with one that must have the same losses. Those of a family train from weights that are loaded, under
ZeRO-3 in shards."""
SAME_LORA = {"zero3_held0_llama_lora": "zero0_llama_lora"}
"""The same with adapters."""
LOSS, LOSS_BF16 = 1e-3, 0.05
"""Largest difference of any loss of a run: in fp32, and of bf16 from fp32."""


def run(report: Report, options: Options) -> None:
    """Fills the report; skips where the packages for training are missing."""
    if not report.can_run("ZeRO stages", *TRAINING, "safetensors"):
        return
    os.environ.setdefault("DS_ACCELERATOR", options.device.type)
    os.environ["WANDB_MODE"] = "disabled"
    from zero_worker import FAMILIES, write_family

    from coconut_ds.distributed.process_group import start_ranks, stop_ranks

    ranks = start_ranks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for family in FAMILIES:
            write_family(family, folder)
        if options.small:
            _compare(report, folder, ranks, {"zero2_qwen3": "zero0_qwen3"})
        else:
            losses = _compare(report, folder, ranks, SAME)
            bf16 = _losses(report, "zero2_bf16", folder, ranks)
            _check(report, "losses of zero2_bf16", bf16, losses["zero0"], LOSS_BF16)
            if report.can_run("ZeRO stages with LoRA", "peft"):
                _resume(report, folder, ranks, _compare(report, folder, ranks, SAME_LORA))
    stop_ranks()


def _compare(report: Report, folder: Path, ranks: Any, same: dict[str, str]) -> dict[str, list[float]]:
    """Trains the variants, and compares the losses of those that must be the same. Returns the losses of each."""
    losses: dict[str, list[float]] = {}
    for variant, other in same.items():
        for each in (other, variant):
            if each not in losses:
                losses[each] = _losses(report, each, folder, ranks)
        _check(report, f"losses of {variant}", losses[variant], losses[other], LOSS)
    return losses


def _resume(report: Report, folder: Path, ranks: Any, losses: dict[str, list[float]]) -> None:
    """A run in two launches has the losses of the run in one."""
    from zero_worker import RESUMED, record

    with report.part(f"{RESUMED}, resumed"):
        for epochs in (1, 2):
            resumed = record(RESUMED, folder, ranks, "resumed", epochs)["losses"]
        _check(report, "losses after a resume", resumed, losses[RESUMED], LOSS)


def _losses(report: Report, variant: str, folder: Path, ranks: Any) -> list[float]:
    from zero_worker import record

    losses: list[float] = []
    with report.part(variant):
        losses = record(variant, folder, ranks)["losses"]
        report.number(f"losses of {variant}", [round(loss, 6) for loss in losses])
    return losses


def _check(report: Report, name: str, found: list[float], expected: list[float], bound: float) -> None:
    # Without losses, the variant itself has failed.
    same = len(found) == len(expected) > 0
    most = max(abs(a - b) for a, b in zip(found, expected, strict=True)) if same else float("inf")
    report.check(name, most < bound, f"{most:.1e}", f"a difference below {bound}")
