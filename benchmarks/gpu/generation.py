"""Section ``generation``: GPT-2 in bf16 answers 32, 128 and 256 questions at a time, with six thoughts each."""

import time

import step
import torch
from generation_workload import EOS, NEW_TOKENS, NUM_THOUGHTS, request_of, synchronise, tokens_of_questions

from coconut_ds.generation.batch import generate
from coconut_ds.model.latent_loop import LatentLoop
from gpu.report import Report
from gpu.workload import Options, make_model

SLOTS = (32, 128, 256)
HIGHEST = 20.0
"""Time of a one-position step over its floor above which the check fails. With 32 rows of GPT-2, reading weights and
cache takes about 0.15 ms on an H200; a CUDA graph of the step takes about 1 ms, single launches 2 to 4 (estimates)."""


def run(report: Report, options: Options) -> None:
    """Fills the report."""
    dtype = torch.float32 if options.small else torch.bfloat16
    loop = LatentLoop(make_model("gpt2", options, dtype).eval())
    for slots in (4,) if options.small else SLOTS:
        with report.part(f"{slots} slots"):
            _measure(report, options, loop, slots)


def _measure(report: Report, options: Options, loop: LatentLoop, slots: int) -> None:
    requests = [request_of(question, NUM_THOUGHTS) for question in tokens_of_questions(slots)]
    generate(loop, requests, [EOS], slots)
    synchronise(options.device)
    began = time.perf_counter()
    completions = generate(loop, requests, [EOS], slots)
    synchronise(options.device)
    seconds = time.perf_counter() - began
    found = {
        "problems_per_s": round(slots / seconds, 2),
        "new_tokens_per_s": round(slots * NEW_TOKENS / seconds, 1),
        **step.measure(loop, slots, rounds=2 if options.small else 24),
    }
    report.number(f"{slots} slots", found)
    complete = sum(len(completion.tokens) == NEW_TOKENS for completion in completions)
    report.check(f"tokens with {slots} slots", complete == slots, f"{complete} complete requests", f"{slots}")
    if options.on_gpu:
        over = found["advance_over_floor"]
        report.check(f"step over its floor, {slots} slots", over < HIGHEST, over, f"below {HIGHEST}")
