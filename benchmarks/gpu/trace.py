"""Section ``trace``: one micro batch under torch's profiler: attention kernels, waits for the GPU, copies, launches."""

from collections.abc import Sequence

import torch
from generation_workload import EOS, NEW_TOKENS, NUM_THOUGHTS, request_of, tokens_of_questions
from torch.profiler import record_function

from coconut_ds.generation.batch import generate
from coconut_ds.methods.layout import Layout
from coconut_ds.model.latent_loop import LatentLoop
from gpu.report import Report
from gpu.trace_events import Counts, count
from gpu.workload import LOOP, Options, loop_pass, make_model, micro_batches, traced

GENERATION = "generation"
"""Name of the marked block around a whole generation."""
CASES = (("gpt2", torch.bfloat16), ("llama_1b", torch.bfloat16), ("llama_1b", torch.float32))
"""Models of all heads and of grouped heads. fp32 with grouped heads is what torch has no fused kernel for."""
LAYERS = 2
"""Layers of the traced models: each layer does the same, and a short trace is read faster."""
FUSED = {"flash", "cudnn", "efficient"}


def run(report: Report, options: Options) -> None:
    """Fills the report."""
    (batch,) = micro_batches(1, 4 if options.small else 32)
    for model, dtype in CASES[-1:] if options.small else CASES:
        name = f"{model} {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
        loop = LatentLoop(make_model(model, options, dtype, LAYERS))
        with report.part(f"{name}, training"):
            _trace_training(report, options, name, loop, batch)
        with report.part(f"{name}, generation"):
            _trace_generation(report, options, name, loop)


def _trace_training(report: Report, options: Options, name: str, loop: LatentLoop, batch: Sequence[Layout]) -> None:
    for _ in range(2):
        loop_pass(loop, batch)
    counts = count(traced(lambda: loop_pass(loop, batch), options, name.replace(" ", "_") + "_training"), LOOP)
    loop.zero_grad()
    _record(report, f"{name}, training", counts)
    if not options.on_gpu:
        report.skip(f"kernels and waits of {name}", "needs a CUDA device")
        return
    _check_kernels(report, f"{name}, training", counts)
    if name.endswith("bf16"):
        used = set(counts.attention)
        report.check(f"prefix kernel of {name}", bool(used & {"flash", "cudnn"}), sorted(used), "flash or cuDNN")
    waits = counts.synchronisations
    report.check(f"waits in the loop of {name}", waits == 0, waits, "0: the loop never waits for the GPU")
    copied = sum(counts.copies.values())
    report.check(f"copies in the loop of {name}", copied == 0, counts.copies, "none between CPU and GPU")


def _trace_generation(report: Report, options: Options, name: str, loop: LatentLoop) -> None:
    questions = tokens_of_questions(2 if options.small else 32)
    # With a common beginning, so that the rest of a prompt is encoded against cached keys (a masked pass) as well.
    requests = [request_of(question, NUM_THOUGHTS) for question in questions]
    requests.append(request_of([*questions[0][:-8], *questions[1][-8:]], NUM_THOUGHTS))

    def run_all() -> None:
        with record_function(GENERATION):
            generate(loop, requests, [EOS], slots=len(requests))

    run_all()
    counts = count(traced(run_all, options, name.replace(" ", "_") + "_generation"), GENERATION)
    _record(report, f"{name}, generation", counts)
    if options.on_gpu:
        _check_kernels(report, f"{name}, generation", counts)
        # All rows together choose NEW_TOKENS tokens; encoding the prompts may wait a few times more.
        waits, most = counts.synchronisations, NEW_TOKENS + 8
        report.check(
            f"waits in generation of {name}", waits <= most, waits, f"at most {most}: one per token, and a few"
        )


def _record(report: Report, name: str, counts: Counts) -> None:
    report.number(
        name,
        {
            "attention": counts.attention,
            "launches": counts.launches,
            "synchronisations": counts.synchronisations,
            "copies": counts.copies,
            "gpu_busy_ms": round(counts.busy_s * 1e3, 2),
            "ms": round(counts.seconds * 1e3, 2),
        },
    )


def _check_kernels(report: Report, name: str, counts: Counts) -> None:
    used = set(counts.attention)
    report.check(f"kernels of {name}", used <= FUSED, sorted(used), "only flash, cuDNN and memory-efficient attention")
