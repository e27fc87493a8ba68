"""Section ``prosqa``: the default experiment in bf16 for 60 updates with six thoughts, extrapolated to whole epochs.

The problems are generated and read with a word-level tokenizer, since nothing can be downloaded; with GPT-2's tokenizer
they have about twice as many tokens.
"""

import json
import math
import os
import random
import statistics
import tempfile
from functools import partial
from pathlib import Path

from gpu.demo import show
from gpu.report import Report
from gpu.workload import TRAINING, Options

EPOCH = 17_886
"""Problems of ProsQA's training set."""
UPDATES, BATCH, SKIPPED = 60, 128, 10
"""Updates; problems of each; updates at the beginning that are not counted."""
METHOD = "coconut_no_curriculum"
"""Has from its first update on the sequences of ``coconut`` at stage 6: six thoughts and the answer."""
SMALL = ("model=gpt2_scratch_tiny", "global_batch_size=8", "batch_size_training=4", "bf16=false", "max_new_tokens=2")


def run(report: Report, options: Options) -> None:
    """Fills the report; skips where the packages for training are missing."""
    if not report.can_run("ProsQA", *TRAINING):
        return
    from coconut_ds.settings.overrides import text_override
    from coconut_ds.studies.harness import launch_run
    from coconut_ds.training.metrics import read_metrics

    os.environ.setdefault("DS_ACCELERATOR", options.device.type)
    updates, batch, skipped = (2, 8, 0) if options.small else (UPDATES, BATCH, SKIPPED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_problems(folder, updates * batch, 4 if options.small else 32)
        overrides = ["tokenizer=dataset", "bf16=true", f"method={METHOD}", "num_epochs=1", "run.wandb=disabled"]
        overrides += [text_override(f"data.{split}_path", path) for split, path in paths.items()]
        overrides += [text_override("run.save_path", folder / "runs"), text_override("data.cache_path", folder)]
        trained = launch_run(
            "ProsQA", [*overrides, *(SMALL if options.small else ())], partial(show, report), start="plain"
        )
        lines = [line for line in read_metrics(trained.folder / "metrics.jsonl") if "train/loss" in line]
    losses = [line["train/loss"] for line in lines]
    seconds = statistics.median(line["perf/update_s"] for line in lines[skipped:])
    minutes = math.ceil(EPOCH / BATCH) * seconds / 60
    report.number("update_s", round(seconds, 4))
    report.number("tokens_per_s", round(statistics.median(line["perf/tokens_per_s"] for line in lines[skipped:])))
    report.number("epochs_per_minute", round(1 / minutes, 3))
    report.number("hours_for_50_epochs", round(50 * minutes / 60, 2))
    report.number("losses", [round(losses[0], 4), round(losses[-1], 4)])
    report.check("updates", len(lines) == updates, len(lines), str(updates))
    if not options.small:
        report.check(
            "the loss falls", losses[-1] < 0.5 * losses[0], f"{losses[0]:.3f} to {losses[-1]:.3f}", "below half"
        )


def write_problems(folder: Path, train: int, valid: int) -> dict[str, Path]:
    """Writes generated problems; returns the files of the splits."""
    from coconut_ds.data.prosqa import generate_problem

    paths = {}
    for number, (split, size) in enumerate({"train": train, "val": valid, "test": valid}.items()):
        rng = random.Random(number)
        paths[split] = folder / f"{split}.json"
        paths[split].write_text(json.dumps([generate_problem(rng).as_dict() for _ in range(size)]), encoding="utf-8")
    return paths
